"""What an experiment tracker has to do, and where a run resumes. `metrics.WRITERS` lists the trackers."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from afloc_jax.files import Path
from afloc_jax.settings import Json


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
        name: the name of the working directory.
        group: that of the folder it lies in, which the runs of a sweep share.
        config: the settings of the run by dotted key.
    """

    workdir: Path
    step: int
    validated_step: int
    name: str = ""
    group: str = ""
    config: Mapping[str, Json] = dataclasses.field(default_factory=dict)
