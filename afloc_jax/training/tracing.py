"""A trace of some training steps for XProf and TensorBoard, which `launch.py --profile=START:STOP` asks for."""

import dataclasses
import re
import tempfile
from pathlib import Path as LocalPath
from types import TracebackType

import jax

from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.training.processes import say

PROFILE = "profile"  # the folder of the traces in the working directory


@dataclasses.dataclass(frozen=True)
class StepRange:
    """The steps `start` to `stop` - 1 of a run, counted from 0."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> "StepRange":
        """Reads "START:STOP". Raises UsageError where the text is no such range."""
        numbers = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
        if numbers is None:
            raise UsageError(
                f"--profile={text}: write START:STOP, the first step of the trace (counted from 0) and the step after "
                "the last, e.g. --profile=10:15"
            )
        steps = cls(int(numbers[1]), int(numbers[2]))
        if steps.start >= steps.stop:
            raise UsageError(f"--profile={text}: START must be smaller than STOP")
        return steps

    def check(self, done: int, total: int) -> None:
        """Raises UsageError unless the steps are among those that are left of a run: from `done` to `total` - 1."""
        if self.stop > total:
            raise UsageError(f"--profile={self}: the run has only {total} steps; STOP may be at most {total}")
        if self.start < done:
            raise UsageError(f"--profile={self}: the run goes on from step {done}; START must be at least {done}")

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


class Trace:
    """The trace of a run, which process 0 takes of its own devices. As a context, it is ended with the run.

    The profiler of JAX knows only local folders. It therefore writes to a temporary one, which is then copied.
    """

    def __init__(self, steps: StepRange | None, workdir: Path) -> None:
        self._steps = steps if jax.process_index() == 0 else None
        self._folder = workdir / PROFILE
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._last = 0

    def turns_at(self, step: int) -> bool:
        """Whether the trace begins or ends before this step."""
        return self._steps is not None and step in (self._steps.start, self._steps.stop)

    def turn(self, step: int) -> None:
        """Begins or ends the trace before this step; no step may be under way."""
        assert self._steps is not None  # turns_at
        if step == self._steps.start:
            self._temporary = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._temporary.name)
        else:
            self._end()

    def enter_step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """A context for the dispatch of a step, which names it in the trace."""
        self._last = step
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def _end(self) -> None:
        if self._temporary is None or self._steps is None:
            return
        jax.profiler.stop_trace()
        with self._temporary as folder:
            for file in LocalPath(folder).rglob("*"):
                if file.is_file():
                    target = self._folder / file.relative_to(folder).as_posix()
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
        self._temporary = None
        say(
            f"profile of steps {self._steps.start} to {self._last}: {self._folder}; open it with "
            f"xprof --port 8791 {self._folder} (pip install xprof), which also adds it to TensorBoard"
        )

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()
