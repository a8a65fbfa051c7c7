"""How a process ends in the middle of its work, from any of its threads, when the main one may be deep in C++."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

_PATIENCE = 5.0  # seconds for all actions together; a file system that hangs does not keep the process

_leaving = threading.Lock()
_actions: list[Callable[[int], None]] = []


def before_leaving(action: Callable[[int], None]) -> None:
    """Lets `leave` call `action` with the exit status."""
    _actions.append(action)


@contextlib.contextmanager
def released_when_leaving(release: Callable[[], None]) -> Iterator[None]:
    """A context in which `leave` calls `release`."""

    def action(status: int) -> None:
        release()

    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def leave(status: int, line: str) -> NoReturn:
    """Ends this process with `status`, after `line` on stderr and what was to be done before. The first call counts.

    A normal exit would wait for threads, and for the other processes of a run, which may wait for this one.
    """
    _leaving.acquire()  # for ever: a thread that comes later waits here for the end
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    print(line, file=sys.stderr)
    helper = threading.Thread(target=_act, args=(status,), daemon=True)
    helper.start()
    helper.join(_PATIENCE)
    end(status)


def end(status: int) -> NoReturn:
    """Ends this process with `status`, and the workers that read its data, without waiting for threads."""
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _act(status: int) -> None:
    for action in reversed(_actions):
        with contextlib.suppress(Exception):
            action(status)
