"""Experiment trackers: the numbers of a run are written to metrics.jsonl (an object per line) and TensorBoard."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from tensorboardX import SummaryWriter

from afloc_jax.buckets import is_bucket
from afloc_jax.evaluation.report.training import Logged, read_metrics
from afloc_jax.files import Path, write_whole
from afloc_jax.training.workdir import METRICS

_COPIED_EVERY = 60  # seconds between copies to a bucket


class Writer(Protocol):
    """An experiment tracker: it writes the numbers of a run."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes the values of a step. `split` is "train" or "validation"."""

    def flush(self) -> None:
        """Writes buffered values."""

    def close(self) -> None:
        """Writes buffered values and closes the tracker."""


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The point from which a run resumes. Writers drop later values, because they will be written again.

    Attributes:
        workdir: the folder to write to, on this machine.
        step: the last training step that is kept.
        validated_step: the last validation that is kept. It is before `step` after a signal during a validation.
    """

    workdir: Path
    step: int
    validated_step: int


class JsonLines:
    """`metrics.jsonl`: each line is an object of step, split and the values."""

    def __init__(self, resumed: Resumed) -> None:
        path = resumed.workdir / METRICS

        def kept(line: Logged) -> bool:
            last = resumed.validated_step if line["split"] == "validation" else resumed.step
            return isinstance(line["step"], int) and line["step"] <= last

        write_whole(path, "".join(json.dumps(line) + "\n" for line in read_metrics(path) if kept(line)))
        self._file = path.open("a")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files with the scalars `<split>/<name>`."""

    def __init__(self, resumed: Resumed) -> None:
        self._board = SummaryWriter(str(resumed.workdir), purge_step=resumed.step + 1 if resumed.step else None)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


# A further experiment tracker needs a class and a row here.
WRITERS: tuple[Callable[[Resumed], Writer], ...] = (JsonLines, TensorBoard)


class Writers:
    """All of `WRITERS` together. With `active` False, on processes other than the first, it writes nothing.

    Files in a bucket cannot grow. For a workdir there the files grow in a temporary folder, and are copied whole once a
    minute, by `flush` and by `close`.
    """

    def __init__(self, resumed: Resumed, active: bool = True) -> None:
        self._bucket: Path | None = None
        self._copied = time.monotonic()
        if active and is_bucket(resumed.workdir):
            self._bucket, self._temporary = resumed.workdir, tempfile.TemporaryDirectory(prefix="afloc_metrics_")
            resumed = dataclasses.replace(resumed, workdir=Path(self._temporary.name))
            if (self._bucket / METRICS).exists():
                (self._bucket / METRICS).copy(resumed.workdir / METRICS)
        self._writers = [writer(resumed) for writer in WRITERS] if active else []

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, values)
        if self._bucket and time.monotonic() - self._copied > _COPIED_EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered. It is called before a checkpoint is saved, so that a killed run loses no value."""
        for writer in self._writers:
            writer.flush()
        self._copy()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._copy()

    def _copy(self) -> None:
        if self._bucket is None:
            return
        for path in Path(self._temporary.name).iterdir():
            path.copy(self._bucket / path.name, overwrite=True)
        self._copied = time.monotonic()
