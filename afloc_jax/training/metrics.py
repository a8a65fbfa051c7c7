"""Experiment trackers: the numbers of a run are written to metrics.jsonl (an object per line) and TensorBoard."""

import contextlib
import dataclasses
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from afloc_jax.buckets import is_bucket
from afloc_jax.evaluation.report.training import Logged, read_metrics
from afloc_jax.files import Path, write_whole
from afloc_jax.training.settings import TRACKERS
from afloc_jax.training.trackers import IDS, MlflowRun, WandbRun, guarded
from afloc_jax.training.workdir import METRICS
from afloc_jax.training.writer import Resumed, Writer

_FLUSHED_EVERY = 60  # seconds


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
    """Event files with the scalars `<split>/<name>`.

    They are written here and not by tensorboardX's SummaryWriter, whose thread ends with a traceback when the disk is
    full. A run would then wait for that thread for ever.
    """

    def __init__(self, resumed: Resumed) -> None:
        self._library = _tensorboardx()
        self._events = self._library.event_file_writer.EventsWriter(str(resumed.workdir / "events"))
        if resumed.step:  # later values of earlier files are hidden
            start = self._library.proto.event_pb2.SessionLog
            self._add(resumed.step + 1, file_version="brain.Event:2")
            self._add(resumed.step + 1, session_log=start(status=start.START))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(step, summary=self._library.summary.scalar(f"{split}/{name}", value))

    def _add(self, step: int, **content: object) -> None:
        event = self._library.proto.event_pb2.Event(step=step, wall_time=time.time(), **content)
        self._events.write_event(event)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _tensorboardx() -> ModuleType:
    """The library tensorboardX, imported for the first run that trains, so that other commands start without it.

    Where PyTorch is installed it would import that too, for 2 s and for nothing that is used here; it takes a missing
    one, which is what None in `sys.modules` means.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("tensorboardX")
    finally:
        if hidden:
            del sys.modules["torch"]


# A further experiment tracker needs a class and a row here, and a name in TRACKERS of settings.py if it is an option.
WRITERS: Mapping[str, Callable[[Resumed], Writer]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": guarded("wandb", WandbRun),
    "mlflow": guarded("mlflow", MlflowRun),
}
ALWAYS = tuple(name for name in WRITERS if name not in TRACKERS)


class Writers:
    """Several of `WRITERS` together: those that every run has, and the `trackers` of the config.

    With `active` False, on processes other than the first, it writes nothing.

    Files in a bucket cannot grow. For a workdir there the files grow in a temporary folder, and are copied whole once a
    minute, by `flush` and by `close`.
    """

    def __init__(self, resumed: Resumed, active: bool = True, trackers: Sequence[str] = ()) -> None:
        self._bucket: Path | None = None
        self._flushed = time.monotonic()
        if active and is_bucket(resumed.workdir):
            self._bucket, self._temporary = resumed.workdir, tempfile.TemporaryDirectory(prefix="afloc_metrics_")
            resumed = dataclasses.replace(resumed, workdir=Path(self._temporary.name))
            for name in (METRICS, IDS):
                if (self._bucket / name).exists():
                    (self._bucket / name).copy(resumed.workdir / name)
        self._writers = [WRITERS[name](resumed) for name in (*ALWAYS, *trackers)] if active else []

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, values)
        if time.monotonic() - self._flushed > _FLUSHED_EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered. It is called before a checkpoint is saved, so that a killed run loses no value."""
        for writer in self._writers:
            writer.flush()
        self._copy()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes all of them, also where the disk is full for one."""
        with contextlib.ExitStack() as closing:
            for writer in self._writers:
                closing.callback(writer.close)
        self._copy()

    def _copy(self) -> None:
        if self._bucket is None:
            return
        for path in filter(Path.is_file, Path(self._temporary.name).iterdir()):
            path.copy(self._bucket / path.name, overwrite=True)
