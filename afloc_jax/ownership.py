"""One run, one owner: a folder belongs to one process at a time.

The file `running.json` in the folder says who that is. It is made by a hard link, which exactly one of several
processes can do, also on network file systems. Its owner touches it every few seconds. It is taken over at once where
its process is gone from this host, and from elsewhere after a minute without a touch: a machine that disappears does
not lock its runs for ever.
"""

import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from afloc_jax.buckets import is_bucket
from afloc_jax.errors import UsageError, UserError

OWNER_FILE = "running.json"
BEAT, PATIENCE = 10.0, 60.0  # seconds between touches; without a touch until the owner counts as gone


@dataclass(frozen=True)
class Owner:
    """A process, as the file names it.

    Attributes:
        host: the name of its machine.
        space: the boot of that machine and the name space of process numbers, within which `process` means something.
        process: its number.
        began: when the process started, in the units of the system; a later process of that number differs.
        since: when it became the owner, for readers.
        identity: unique.
    """

    host: str
    space: str
    process: int
    began: str
    since: str
    identity: str

    @classmethod
    def this_process(cls) -> "Owner":
        """The calling process, as a new owner."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(socket.gethostname(), _space(), os.getpid(), _began(os.getpid()), since, uuid.uuid4().hex)

    @property
    def is_here(self) -> bool:
        """Whether its process number means something to this process."""
        return (self.host, self.space) == (socket.gethostname(), _space())

    @property
    def is_gone(self) -> bool:
        """Whether it ran here and has ended."""
        return self.is_here and _began(self.process) != self.began

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class Ownership:
    """The right of this process to write a folder, from `take` to the end of the block.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with Ownership(folder) as mine:
    ...     mine.take()
    ...     os.listdir(folder)
    ['running.json']
    >>> os.listdir(folder)
    []
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        say: Callable[[str], None] = print,
        beat: float = BEAT,
        patience: float = PATIENCE,
    ) -> None:
        """Takes nothing yet.

        Args:
            folder: the folder; one in a bucket is not guarded, and `say` tells so.
            say: takes lines for the user.
            beat: seconds between touches.
            patience: seconds without a touch after which an owner elsewhere counts as gone.
        """
        self._folder, self._say, self._beat, self._patience = folder, say, beat, patience
        self._path = Path(folder) / OWNER_FILE
        self._handle: int | None = None
        self._ended = threading.Event()

    def take(self) -> None:
        """Makes this process the owner; it may wait for `patience`. A second call does nothing.

        Raises:
            UsageError: another process is the owner.
            OSError: the folder does not exist or may not be written.
        """
        if self._handle is not None:
            return
        if is_bucket(self._folder):
            self._say(f"{self._folder}: nothing keeps a second run out of this folder; start one alone")
            return
        while not self._made():
            found = _read(self._path)
            if found is not None and not found.is_gone:
                self._wait_for(found)
            self._remove(found)
        threading.Thread(target=self._touch, daemon=True, name="owner").start()

    def check(self) -> None:
        """Raises UserError if another process has become the owner, because this one was stopped for too long."""
        if self._handle is not None and not self._is_ours():
            raise UserError(
                f"{self._folder}: another process took this folder over while this one was stopped; this one writes no "
                "more"
            )

    def __enter__(self) -> "Ownership":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Gives the folder up. A second call does nothing."""
        self._ended.set()
        if self._handle is not None:
            if self._is_ours():
                self._path.unlink(missing_ok=True)
            handle, self._handle = self._handle, None
            os.close(handle)

    def _made(self) -> bool:
        """Whether the file did not exist and is this process's now."""
        if self._path.exists():
            return False
        own = Owner.this_process()
        temporary = self._path.with_name(f".{OWNER_FILE}.{own.identity}")
        try:
            temporary.write_text(json.dumps(dataclasses.asdict(own), indent=2) + "\n", encoding="utf-8")
            os.link(temporary, self._path)
            self._handle = os.open(self._path, os.O_RDONLY)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _wait_for(self, owner: Owner) -> None:
        """Returns when an owner that runs elsewhere has not touched its file for long enough.

        Raises:
            UsageError: it has, or it runs here.
        """
        if not owner.is_here:
            self._say(f"{self._folder}: {owner}, has it; waiting whether it is still there")
            touched, until = _touched(self._path), time.monotonic() + self._patience
            while (now := _touched(self._path)) == touched and time.monotonic() < until:
                time.sleep(self._beat / 10)
            if now in (touched, None):  # None: it has ended
                return
        raise UsageError(
            f"{self._folder}: another run has it ({owner}); wait for its end, stop it, or choose another folder"
        )

    def _remove(self, judged: Owner | None) -> None:
        """Removes the file of an owner that is gone, unless another process was faster."""
        aside = self._path.with_name(f".{OWNER_FILE}.{uuid.uuid4().hex}")
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        if _read(aside) == judged:
            who = str(judged) if judged else "an unreadable owner"
            self._say(f"{self._folder}: taken over from {who}, which is gone")
        else:  # another process has taken over in between: it keeps its file
            os.link(aside, self._path)
        aside.unlink()

    def _touch(self) -> None:
        while not self._ended.wait(self._beat):
            handle = self._handle
            if handle is None or not self._is_ours():
                return
            os.utime(handle)

    def _is_ours(self) -> bool:
        assert self._handle is not None
        for pause in (0.2, 0.0):  # a process that was too slow with `_remove` puts the file back
            try:
                if os.path.samestat(os.fstat(self._handle), self._path.stat()):
                    return True
            except OSError:
                pass
            time.sleep(pause)
        return False


def _read(path: Path) -> Owner | None:
    """The owner that a file names; None if it is gone or unreadable."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _began(process: int) -> str:
    """When a process started; empty if there is none. Where the system does not say, "running" stands for it."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]  # a zombie has ended
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
