"""How a run ends early: an error as one line for the user, or a signal after which the run saves and stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from afloc_jax.errors import UsageError, UserError, chain, is_no_space

_LOST = ("gloo ", "nccl operation", "coordination service", "connection closed by peer", "socket closed")


class NonFiniteError(UserError):
    """The loss or a gradient became NaN or infinite; the state before that step is saved."""


def _is_lost(error: BaseException) -> bool:
    """Whether the connection to another process broke. Only errors of JAX's runtime are recognised."""
    return any(
        type(link).__name__ == "JaxRuntimeError" and any(phrase in str(link).lower() for phrase in _LOST)
        for link in chain(error)
    )


def explain(error: BaseException) -> str:
    """One line that says what went wrong and what to do."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command to go on from the last checkpoint"
    if is_no_space(error):
        return "no space left on the disk of --workdir; free some and run the same command to go on from the last save"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory; lower config.training.batch_size or use config.training.precision=bfloat16"
    if _is_lost(error):
        return (
            "another process of this run is gone; its own output says why. Run the same command on all processes to go "
            "on from the last checkpoint (--debug shows where this one waited for it)"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[0].split(" [tensorstore_spec=")[0] if lines else "no message"  # what follows takes kilobytes
    return f"{type(error).__name__}: {told} (--debug shows where)"


@contextmanager
def explained() -> Iterator[None]:
    """A context for building a step from a config: any error in it becomes a UsageError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UsageError(f"no training step can be made of this config: {explain(error)}") from error


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a request that the loop polls. A second Ctrl-C interrupts at once.

    Use it as a context manager, which restores the former handlers at its end. Outside the main thread it receives no
    signals.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, signal.Handlers] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __enter__(self) -> "StopSignal":
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._receive)  # type: ignore[assignment]
        except ValueError:  # only the main thread may install handlers
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as a shell reports a process that was ended by a signal."""
        return 128 + (self.received or 0)
