"""One run that is disturbed by kind and moment, for benchmarks/soak.py: the rows of its table, and the comparison."""

import contextlib
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from afloc_jax.files import sha256_of
from benchmarks import soak_disk
from benchmarks.soak_commands import INTERVAL, Command
from benchmarks.soak_kinds import Disturbance, sealed_steps, take_back_end

UNDISTURBED = "undisturbed"  # the workdir of the run that nothing disturbs
STATUS = {"TERM": 143, "INT": 130, "KILL": -9}  # at the end of a command, by the last signal
COLUMNS = ["disturbance", "moment", "exit status", "seconds", "lines besides", "lost steps", "at most"]


@dataclasses.dataclass
class Row:
    """What came of a disturbance.

    Attributes:
        what: the disturbance.
        told: its moment, with what is to be said of it.
        status, seconds: how the command ended, and how long after the last signal or the full disk.
        besides: the lines that an undisturbed command does not say.
        lost: steps that the next command did again; `most` is the promise.
        faults: the promises that it broke.
    """

    what: Disturbance
    told: str
    status: int | None = None
    seconds: float = 0.0
    besides: Sequence[str] = ()
    lost: int = 0
    most: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)

    def cells(self) -> list[str]:
        """The cells of the table."""
        if self.status is None:
            return [self.what.kind, self.told, "", "", "", "", ""]
        numbers = [self.status, f"{self.seconds:.1f}", len(self.besides), self.lost, self.most]
        return [self.what.kind, " ".join([self.told, *self.faults]), *map(str, numbers)]

    def judge(self) -> None:
        """Enters the promises about the end of the command that it broke."""
        wanted = STATUS[self.what.signals[-1]] if self.what.signals else 1
        if self.status != wanted:
            self.faults.append("WRONG STATUS")
        if wanted == 1 and len(self.besides) != 1:
            self.faults.append("NOT ONE LINE")
        if self.what.leaves is not None and not any("no space left" in line.lower() for line in self.besides[-1:]):
            self.faults.append("NO WORD OF THE DISK")


@dataclasses.dataclass
class Soak:
    """A run that is disturbed.

    Attributes:
        config: the config file.
        steps: how many it trains.
        workdir, data, scratch: its folders.
        ordinary: the shapes of the lines that an undisturbed command says.
    """

    config: Path
    steps: int
    workdir: Path
    data: Path
    scratch: Path
    ordinary: set[str]
    rows: list[Row] = dataclasses.field(default_factory=list)
    _reached: int = 0  # the last step that was done
    _least: int = 0  # the step from which the next command must go on at least
    _open: Row | None = None  # the row whose lost steps the next command shows

    def disturb(self, what: Disturbance) -> None:
        """Starts the command, disturbs it, and enters a row."""
        if what.leaves is not None and (reason := soak_disk.why_not()):
            self.rows.append(Row(what, f"not done ({reason})"))
            return
        row = Row(what, what.moment)
        with contextlib.ExitStack() as around:
            workdir = self.workdir
            if what.leaves is not None:
                workdir = around.enter_context(soak_disk.on_small_disk(workdir, self.scratch))
            if what.around is not None:
                around.enter_context(what.around(workdir, self.data))
            cold = self.scratch / "cold" if what.moment == "compilation" else None
            command = Command(self.config, workdir, self.data, self.steps, cold=cold)
            came = command.wait_until(lambda: what.has_come(command))
            noticed = time.monotonic() if came and (what.pattern or what.file) else command.began
            if came:
                what.act(command)
            acted = time.monotonic()
            row.status = command.end()
            came = came and not command.said("(finished after)")
            row.seconds = time.monotonic() - acted
        row.besides = command.besides(self.ordinary, noticed)
        self._count(command, what, row)
        if came or row.status == 1:
            row.judge()
        else:
            row.told += " (missed)"
        if came and what.after is not None:
            what.after(self.workdir)
        self.rows.append(row)
        print(row.cells(), *row.besides, sep="\n  ", file=sys.stderr)

    def finish(self) -> int:
        """Lets the run end; returns the exit status."""
        command = Command(self.config, self.workdir, self.data, self.steps)
        status = command.end()
        self._count(command, None, None)
        print(f"the last command ended with {status}", file=sys.stderr)
        return status

    def _count(self, command: Command, what: Disturbance | None, row: Row | None) -> None:
        """Counts the steps that the command before has lost, and what this one may lose."""
        resumed = command.last_step(r"going on from step (\d+)")
        goes_on = bool(command.said("(going on from step|training starts at step 0)"))
        if goes_on and self._open is not None:
            self._open.lost = max(self._reached - resumed, 0)
            if resumed < self._least or self._open.lost > self._open.most:
                self._open.faults.append("LOST MORE")
            self._open = None
        done = command.last_step(r"^step (\d+) of")
        if what is None or row is None or not (done or goes_on):
            return
        self._reached, self._open = max(done, resumed), row
        sealed = [0, *sealed_steps(self.workdir)]
        started = command.last_step(r"checkpoint of step (\d+): saving")
        unfinished = self._reached - started if started > sealed[-1] else 0
        if what.is_graceful:
            self._least = self._reached
        else:
            row.most = (2 if what.spoils else 1) * INTERVAL + unfinished
            self._least = sealed[-2] if what.spoils and len(sealed) > 1 else sealed[-1]


def losses(workdir: Path) -> list[tuple[int, str, float]]:
    """Step, split and loss of every line of metrics.jsonl."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["split"], line["loss"]) for line in lines]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _summary(rows: list[Row]) -> str:
    """The most steps that were lost, by what happened, and the longest end after a signal to stop."""
    groups = {
        "TERM and INT": [row for row in rows if row.what.is_graceful],
        "KILL": [row for row in rows if row.what.signals[-1:] == ("KILL",) and not row.what.spoils],
        "KILL with the newest checkpoint spoiled": [row for row in rows if row.what.spoils],
        "full disk": [row for row in rows if row.what.leaves is not None],
    }
    lost = [f"{max(row.lost for row in found)} by {name}" for name, found in groups.items() if found]
    seconds = max((row.seconds for row in groups["TERM and INT"]), default=0.0)
    return f"steps lost at most: {', '.join(lost)}; longest end after TERM or INT: {seconds:.1f} s"


def soak(
    config: Path, data: Path, scratch: Path, steps: int, chosen: Sequence[Disturbance], minutes: float = math.inf
) -> bool:
    """Prints the table; returns whether every promise was kept. Moments at the end of a run come last.

    No disturbance begins after so many minutes.
    """
    until = time.monotonic() + 60 * minutes
    undisturbed = scratch / UNDISTURBED
    command = Command(config, undisturbed, data, steps)
    assert command.end() == 0, command.lines[-1:]
    records = f"phantom-{json.loads((undisturbed / 'run.json').read_text())['data_sha256']}"
    shutil.copytree(data / records, scratch / "copy" / records)
    run = Soak(config, steps, scratch / "disturbed", scratch / "copy", scratch, command.shapes())
    for what in sorted(chosen, key=lambda what: bool(what.file)):
        if time.monotonic() < until:
            for last in (False, False, True):  # short moments at the end of a run may be missed
                run.disturb(what)
                if run.rows[-1].status != 0:
                    break
                take_back_end(run.workdir)
                if not last:
                    run.rows.pop()
        else:
            run.rows.append(Row(what, f"{what.moment} (not done for want of time)"))
    status = run.finish()
    print(table(COLUMNS, [row.cells() for row in run.rows]))
    print(_summary(run.rows))
    done = sum(row.status is not None and "(missed)" not in row.told for row in run.rows)
    same_losses = losses(undisturbed) == losses(run.workdir)
    same_weights = len({sha256_of(folder / "model/model.safetensors") for folder in (undisturbed, run.workdir)}) == 1
    print(f"disturbances: {done}; the losses of all steps are equal: {'yes' if same_losses else 'NO'}")
    print(f"final weights equal bit for bit: {'yes' if same_weights else 'NO'}")
    return status == 0 and same_losses and same_weights and not any(row.faults for row in run.rows)
