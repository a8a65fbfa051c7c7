"""Breaks the program for real, and says what was lost: the numbers of docs/reliability.md, all by one command.

    python -m benchmarks.soak                          all five parts, about an hour on two idle cores
    python -m benchmarks.soak --runs [--steps 100] [--minutes 27] [--only "full disk|INT"] [--small]
    python -m benchmarks.soak --hostile
    python -m benchmarks.soak --page [--model MODEL]
    python -m benchmarks.soak --launches 50
    python -m benchmarks.soak --peers

--runs disturbs one run of the demo's size by kind and moment, goes on each time, and compares with an undisturbed run.
Its table says how each disturbed command ended, after how many seconds, how many lines it said besides those of an
undisturbed one, how many steps were lost, that is done again by the next one, and how many may be. --only takes the
rows whose first two cells have a pattern; no row begins after so many --minutes; --small takes a network that trains in
seconds. A disk is filled where this process may mount a file system.

--hostile gives hostile files to the commands (`python -m benchmarks.hostile`). --page loads `afloc serve` (`python -m
benchmarks.page_load`) with MODEL, by default one of the demo's size. --launches starts two commands in one workdir at
the same moment, so many times. --peers shows what two processes say when one of them is killed or stopped, and after
how many seconds.

--data DIR holds the phantoms, which are drawn where they are missing; records are removed from a copy alone. The exit
status is 1 if a promise of docs/reliability.md was broken: the final weights differ in a bit from those of the
undisturbed run, a row shows a fault, an input crashed, hung or passed without a word, a workdir was lost, or a time or
the memory is beyond its goal.
"""

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import page_load, soak_disk, soak_pairs
from benchmarks.soak_commands import INTERVAL, ROOT, Command
from benchmarks.soak_kinds import DISTURBANCES
from benchmarks.soak_run import UNDISTURBED, soak, table

USUAL, SMALL = (ROOT / f"benchmarks/{name}.py" for name in ("soak_config", "soak_small_config"))
PAIRS = 50  # launches in one workdir where no number is given


def _runs(given: argparse.Namespace, data: Path, scratch: Path) -> bool:
    chosen = [what for what in DISTURBANCES if re.search(given.only, f"{what.kind} {what.moment}")]
    return soak(SMALL if given.small else USUAL, data, scratch, given.steps, chosen, given.minutes)


def _hostile(given: argparse.Namespace, data: Path, scratch: Path) -> bool:
    from benchmarks.hostile.table import report

    return report() == 0


def _page(given: argparse.Namespace, data: Path, scratch: Path) -> bool:
    model = given.model or scratch / UNDISTURBED / "model"
    if not model.exists() or (given.small and not given.model):
        model = scratch / "short/model"
        command = Command(USUAL, model.parent, data, INTERVAL)
        assert command.end() == 0, command.lines[-1:]
    return page_load.report([model])


def _launches(given: argparse.Namespace, data: Path, scratch: Path) -> bool:
    rows, kept = soak_pairs.launches(SMALL, data, scratch, given.launches or PAIRS)
    print(table(soak_pairs.LAUNCHES, rows))
    return kept


def _peers(given: argparse.Namespace, data: Path, scratch: Path) -> bool:
    rows, kept = soak_pairs.peers(USUAL, data, scratch)
    print(table(soak_pairs.PEERS, rows))
    return kept


PARTS: dict[str, Callable[[argparse.Namespace, Path, Path], bool]] = {
    "runs": _runs,
    "hostile": _hostile,
    "page": _page,
    "launches": _launches,
    "peers": _peers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="default: a temporary folder")
    for name in PARTS:
        if name == "launches":
            parser.add_argument("--launches", type=int, default=0)
        else:
            parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", default="", help="a regular expression")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no disturbance begins after so many")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--model", type=Path, help="model folder of the page")
    given = parser.parse_args()
    chosen = [name for name in PARTS if getattr(given, name)] or list(PARTS)
    broken = []
    with tempfile.TemporaryDirectory() as scratch:
        data = (given.data or Path(scratch) / "phantoms").absolute()
        for name in chosen:
            print(f"\n{name}\n", flush=True)
            if not PARTS[name](given, data, Path(scratch)):
                broken.append(name)
    print(f"\npromises broken: {', '.join(broken) or 'none'} (of {', '.join(chosen)})")
    sys.exit(bool(broken))


if __name__ == "__main__":
    soak_disk.enter_name_space("benchmarks.soak", sys.argv[1:])
    main()
