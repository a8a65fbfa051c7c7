"""The memory table of docs/scale.md: one `afloc compile` per row, each in a process of its own.

    python -m benchmarks.scale_table --out rows.jsonl v5e:4x4=1024 v5e:16x16=16384 v5e:16x16=32768,training.remat=blocks

A row is TOPOLOGY=GLOBAL_BATCH, followed by changed settings; `--set` changes settings of all rows. Rows that are in the
file already are not compiled again. The program prints the table of all rows in the file. A row without a result, as
when the compiler dies, is one line, and the others are compiled; the exit status is then 1. It needs pip install
"jax[tpu]", but no TPU, and for GPUs "jax[cuda13]", but no GPU.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.tpu_schedule import why

REPOSITORY = Path(__file__).resolve().parents[1]
GIB = 2**30


def compiled(config: str, part: str, topology: str, batch: str, settings: list[str]) -> dict | str:
    """The row, or why there is none."""
    command = [sys.executable, "-m", "afloc_jax", "compile", "--config", config, "--topology", topology]
    command += ["--global_batch", batch, "--part", part, "--json"]
    for setting in settings:
        command += ["--set", setting]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if not done.stdout:
        return why(done)
    return json.loads(done.stdout) | {"settings": settings, "compile_seconds": round(time.perf_counter() - start)}


def table(rows: list[dict]) -> str:
    def gib(value: int | None) -> str:
        return "" if value is None else f"{value / GIB:.2f}"

    lines = ["| part | topology | chips | global batch | settings | peak GiB | of | arguments | temporary | fits |"]
    lines.append("|---" * 10 + "|")
    for row in rows:
        cells = [
            row["part"],
            row["topology"],
            str(row["chips"]),
            f"{row['global_batch']:,}",
            ", ".join(row["settings"]) or "as it is",
        ]
        keys = ("peak_bytes_per_chip", "limit_bytes_per_chip", "argument_bytes_per_chip", "temporary_bytes_per_chip")
        cells += [gib(row[key]) for key in keys]
        lines.append("| " + " | ".join([*cells, "yes" if row["fits"] else "no"]) + " |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="TOPOLOGY=BATCH[,KEY=VALUE...]")
    parser.add_argument("--config", default="configs/afloc.py")
    parser.add_argument("--part", choices=("step", "loss"), default="step")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all rows")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    arguments = parser.parse_args(given)
    missing = 0
    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for row in arguments.rows:
        place, *own = row.split(",")
        topology, batch = place.split("=")
        settings = [*arguments.set, *own]
        wanted = (arguments.part, topology, batch, settings)
        if any((r["part"], r["topology"], str(r["global_batch"]), r["settings"]) == wanted for r in done):
            continue
        found = compiled(arguments.config, *wanted)
        if isinstance(found, str):
            print(f"{row}: no row, {found}", file=sys.stderr, flush=True)
            missing += 1
            continue
        done.append(found)
        with arguments.out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(f"{row}: {done[-1]['compile_seconds']} s", file=sys.stderr, flush=True)
    print(table(done))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
