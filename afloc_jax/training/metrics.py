"""The numbers of a run, written by each of `WRITERS`: `metrics.jsonl` (one object per line) and TensorBoard events."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Protocol

from tensorboardX import SummaryWriter

from afloc_jax.evaluation.report.training import Logged, read_metrics
from afloc_jax.files import Path, write_whole
from afloc_jax.training.workdir import METRICS


class Writer(Protocol):
    """A place that numbers are written to."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """The values of a step, "train" or "validation"."""

    def close(self) -> None:
        """Write what is buffered and close."""


@dataclasses.dataclass(frozen=True)
class Resumed:
    """Where a run goes on. What stands behind it will be written again.

    Attributes:
        workdir: the run's.
        step: the last training step that is kept.
        validated_step: the last validation that is kept; a signal during a validation leaves it behind the step.
    """

    workdir: Path
    step: int
    validated_step: int


class JsonLines:
    """`metrics.jsonl`: a line is step, split and the values."""

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

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files with the scalars `<split>/<name>`."""

    def __init__(self, resumed: Resumed) -> None:
        self._board = SummaryWriter(str(resumed.workdir), purge_step=resumed.step + 1 if resumed.step else None)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._board.close()


# A row here is all that a further experiment tracker takes beside its class.
WRITERS: tuple[Callable[[Resumed], Writer], ...] = (JsonLines, TensorBoard)


class Writers:
    """All of `WRITERS` at once; nothing where `active` is False (processes but the first)."""

    def __init__(self, resumed: Resumed, active: bool = True) -> None:
        self._writers = [writer(resumed) for writer in WRITERS] if active else []

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, values)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
