"""How a run ends early: an error as one line for the user, or a signal after which the run saves and stops."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from afloc_jax.errors import UsageError, UserError, chain, is_no_space
from afloc_jax.training import program
from afloc_jax.training.leaving import leave

Result = TypeVar("Result")
GRACE = 2.0  # seconds until the main thread hears a signal, where nothing has to be saved; it may be deep in C++
_UNWINDING = 30.0  # seconds that it may take to close its files then

_LOST = ("gloo ", "nccl operation", "coordination service", "connection closed by peer", "socket closed")


class NonFiniteError(UserError):
    """The loss or a gradient became NaN or infinite; the state before that step is saved."""

    exit_status = 3


class Interrupted(KeyboardInterrupt):
    """A signal that came where nothing had to be saved."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"{number.name}: ended at once, for nothing had to be saved; run the same command to go on")
        self.exit_status = 128 + number


def is_lost(error: BaseException) -> bool:
    """Whether the connection to another process broke, by the errors of JAX's runtime.

    Reading the result of a collective that broke raises a ValueError instead.
    """
    return any(
        type(link).__name__ in ("JaxRuntimeError", "ValueError")
        and any(phrase in str(link).lower() for phrase in _LOST)
        for link in chain(error)
    )


def explain(error: BaseException) -> str:
    """One line that says what went wrong and what to do."""
    if isinstance(error, UserError | Interrupted):
        return " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command to go on from the last checkpoint"
    if is_no_space(error):
        return "no space left on the disk of --workdir; free some and run the same command to go on from the last save"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory; lower config.training.batch_size or use config.training.precision=bfloat16"
    if is_lost(error):
        return (
            "another process of this run is gone; its own output says why. Run the same command on all processes to go "
            "on from the last checkpoint (--debug shows where this one waited for it)"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[0].split(" [tensorstore_spec=")[0] if lines else "no message"  # what follows takes kilobytes
    return f"{type(error).__name__}: {told} (--debug shows where)"


def hide_tracebacks() -> None:
    """Keeps off the screen what libraries log with a traceback: the same errors end the run, and are then one line.

    A full disk during a save makes Orbax and asyncio log hundreds of lines, and Python tell of errors in what it
    removes from memory.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_has_no_traceback)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = lambda told: None


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


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
    """Turns the first SIGTERM or Ctrl-C into a request that the holder polls. A second Ctrl-C interrupts at once.

    Where nothing is held that must be saved, the first one ends the process: `Interrupted` is raised in the main
    thread. That thread may be deep in C++, in a compilation of minutes, where Python has no say. A thread of this class
    then ends the process after `GRACE`.

    Use it as a context manager, which restores the former handlers at its end. Outside the main thread it receives no
    signals.
    """

    def __init__(self, holding: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._holding, self._leaving, self._calls = holding, False, 0
        self._lock = threading.RLock()  # a handler may interrupt its own thread
        self._former: dict[signal.Signals, signal.Handlers] = {}
        self._raised, self._ended = threading.Event(), threading.Event()

    def hold(self) -> None:
        """From here on a signal waits until it is polled."""
        with self._lock:
            self._holding = True

    def let_go(self) -> None:
        """From here on everything is saved. Raises Interrupted if a signal has come that nobody polled."""
        with self._lock:
            self._holding = False
        if self.received is not None:
            raise Interrupted(self.received)

    def _note(self, number: int) -> None:
        with self._lock:
            if self.received is None:
                self.received, self._leaving = signal.Signals(number), not self._holding

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        self._calls += 1
        if self._leaving and self._calls == 1:
            self._raised.set()
            raise Interrupted(signal.Signals(number))
        if self._calls > 1 and number == signal.SIGINT and not self._leaving:
            raise KeyboardInterrupt

    def _listen(self, reader: int) -> None:
        """Notes signals, whose numbers the system's handler writes, also while the main thread is in C++."""
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGTERM, signal.SIGINT):
                self._note(number[0])
                if self._leaving and not (self._raised.wait(GRACE) and self._ended.wait(_UNWINDING)):
                    assert self.received is not None
                    leave(self.exit_status, f"{program.name()}: {Interrupted(self.received)}")
        os.close(reader)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may install handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._receive)  # type: ignore[assignment]
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._former_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._former:
            signal.set_wakeup_fd(self._former_writer)
            os.close(self._writer)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def unless_stopped(self, work: Callable[[], Result]) -> Result | None:
        """The result of `work`, which a thread does; None as soon as a signal is received. The thread goes on then."""
        done: Future[Result] = Future()

        def do() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=do, daemon=True, name="interruptible").start()
        while self.received is None:
            if wait([done], timeout=0.1).done:
                return done.result()
        return None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as a shell reports a process that was ended by a signal."""
        return 128 + (self.received or 0)
