"""What benchmarks/soak.py does to a run: signals, a full disk, damaged and removed files, and the moments for them."""

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak_commands import Command
from benchmarks.soak_disk import fill

Change = Callable[[Path, Path], contextlib.AbstractContextManager[None]]
"""What is done to the files of a workdir, or of the directory of records, for the time of one command."""


@dataclass(frozen=True)
class Disturbance:
    """What is done to a command, and when.

    Attributes:
        kind: its name in the table.
        moment: the name of its moment.
        signals: sent at that moment, in this order.
        pattern, times: the moment has come when so many lines have the pattern.
        file: or when this file of the workdir exists, and the command has the workdir.
        pause: seconds after that.
        leaves: bytes that are left at that moment on a small file system, to which the workdir is moved before; None:
            it stays on its own.
        around: changes files before the command begins, and takes that back when it has ended.
        after: changes files when it has ended, for good.
        spoils: whether `after` spoils the newest checkpoint.
    """

    kind: str
    moment: str
    signals: tuple[str, ...] = ()
    pattern: str = ""
    times: int = 1
    file: str = ""
    pause: float = 0.0
    leaves: int | None = None
    around: Change | None = None
    after: Callable[[Path], None] | None = None
    spoils: bool = False

    @property
    def is_graceful(self) -> bool:
        """Whether the command is asked to stop, so that no step may be lost."""
        return bool(self.signals) and self.signals[-1] in ("TERM", "INT")

    def has_come(self, command: Command) -> bool:
        """Whether the moment has come."""
        if self.file:
            return any(command.workdir.glob(self.file)) and command.has_workdir()
        if self.spoils and len(sealed_steps(command.workdir)) < 2:  # one must be left
            return False
        return not self.pattern or len(command.said(f"({self.pattern})")) >= self.times

    def act(self, command: Command) -> None:
        """Fills the disk, or sends the signals."""
        time.sleep(self.pause)
        if self.leaves is not None:
            fill(command.workdir, self.leaves)
        for name in self.signals:
            command.process.send_signal(signal.Signals[f"SIG{name}"])
            if name == "STOP":
                time.sleep(3)


def sealed_steps(workdir: Path) -> list[int]:
    """The steps whose checkpoints are complete, in order."""
    return sorted(int(path.parent.name) for path in workdir.glob("checkpoints/*/manifest.json"))


def take_back_end(workdir: Path) -> None:
    """Makes a finished run one that has done its last step and nothing after it."""
    for name in ("finished.json", "model", "evaluation", "report"):
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _newest(workdir: Path) -> Path:
    return workdir / "checkpoints" / str(sealed_steps(workdir)[-1])


def _largest(workdir: Path) -> Path:
    return max((_newest(workdir) / "state/d").iterdir(), key=lambda path: path.stat().st_size)


def damage_newest(workdir: Path) -> None:
    """Flips a bit of the last byte of a file of the newest checkpoint."""
    path = _largest(workdir)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_newest(workdir: Path) -> None:
    """Takes half of a file of the newest checkpoint away."""
    path = _largest(workdir)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def gone(pattern: str, records: bool = False) -> Change:
    """Moves what matches a pattern in the workdir, or in the directory of records, away for a while."""

    @contextlib.contextmanager
    def change(workdir: Path, data: Path) -> Iterator[None]:
        found = sorted((data if records else workdir).glob(pattern))
        aside = [path.with_name(f".{path.name}.aside") for path in found]
        for path, place in zip(found, aside, strict=True):
            path.rename(place)
        yield
        for path, place in zip(found, aside, strict=True):
            if path.exists():  # the command made it anew
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            else:
                place.rename(path)

    return change


def _unlinked(name: str) -> Callable[[Path], None]:
    return lambda workdir: (workdir / name).unlink(missing_ok=True)


STEP, SAVE, COMMITTED = r"^step \d+ of", "saving in the background", "committed after"
VALIDATE = r"^step \d*0 of"  # of every tenth step; its line comes just before the validation
START, MODEL, EVALUATION = "^compiled programs are kept", ".model.writing-*", "finished.json"

DISTURBANCES = (
    Disturbance("full disk", "start, new workdir", leaves=0),
    Disturbance("TERM", "compilation", ("TERM",), START),
    Disturbance("TERM", "step", ("TERM",), STEP, 3),
    Disturbance("KILL", "step", ("KILL",), STEP, 5),
    Disturbance("full disk", "step", (), STEP, 2, leaves=2**16),
    Disturbance("TERM", "validation", ("TERM",), VALIDATE),
    Disturbance("INT", "save", ("INT",), SAVE),
    Disturbance("KILL, newest damaged", "after a save", ("KILL",), COMMITTED, after=damage_newest, spoils=True),
    Disturbance("KILL", "save", ("KILL",), SAVE),
    Disturbance("STOP, CONT, TERM", "step", ("STOP", "CONT", "TERM"), STEP, 3),
    Disturbance("full disk", "save", (), SAVE, leaves=0),
    Disturbance(
        "KILL, newest removed", "after a save", ("KILL",), COMMITTED, spoils=True,
        after=lambda run: shutil.rmtree(_newest(run)),
    ),
    Disturbance("INT", "validation", ("INT",), VALIDATE),
    Disturbance(
        "KILL, file of newest removed", "after a save", ("KILL",), COMMITTED, spoils=True,
        after=lambda run: _largest(run).unlink(),
    ),
    Disturbance("tokenizer removed, TERM", "step", ("TERM",), STEP, 1, around=gone("tokenizer")),
    Disturbance("TERM, TERM", "step", ("TERM", "TERM"), STEP, 2),
    Disturbance("KILL", "compilation", ("KILL",), START),
    Disturbance("STOP, KILL", "step", ("STOP", "KILL"), STEP, 7),
    Disturbance("records removed", "start", around=gone("*/*/*/*-train.array_record*", records=True)),
    Disturbance(
        "KILL, manifest of newest removed", "after a save", ("KILL",), COMMITTED, spoils=True,
        after=lambda run: (_newest(run) / "manifest.json").unlink(),
    ),
    Disturbance("full disk", "validation", (), VALIDATE, leaves=0),
    Disturbance("INT", "compilation", ("INT",), START),
    Disturbance("KILL, note of saves removed", "step", ("KILL",), STEP, 3, after=_unlinked("checkpoints.sealed.json")),
    Disturbance("KILL", "validation", ("KILL",), VALIDATE),
    Disturbance("KILL, newest cut", "after a save", ("KILL",), COMMITTED, after=cut_newest, spoils=True),
    Disturbance("full disk", "start", leaves=0),
    Disturbance("INT", "model", ("INT",), file=MODEL),
    Disturbance("full disk", "model", (), file=MODEL, leaves=0),
    Disturbance("KILL", "model", ("KILL",), file=MODEL),
    Disturbance("TERM", "evaluation", ("TERM",), file=EVALUATION, pause=1.0),
    Disturbance("KILL", "evaluation", ("KILL",), file=EVALUATION, pause=1.0),
    Disturbance("model removed, KILL", "model", ("KILL",), file=MODEL, around=gone("model/model.safetensors")),
    Disturbance("full disk", "evaluation", (), file=EVALUATION, leaves=0, pause=1.0),
)  # fmt: skip
