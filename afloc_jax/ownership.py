"""One run, one owner: a folder belongs to one process at a time.

A file in the folder says who that is (`claims` makes it): `running.json` in a working directory, on this machine or in
a bucket, and `.building.json` in a directory where records are built. Its owner touches it every few seconds. It is
taken over at once where its process is gone from this host, and from elsewhere after a minute without a touch: a
machine that disappears does not lock its runs for ever.
"""

import dataclasses
import errno
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

from afloc_jax.claims import Found, claim
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

    @classmethod
    def read(cls, text: str) -> "Owner | None":
        """The owner that the text of a file names; None if it names none."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

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
        name: str = OWNER_FILE,
        waits: bool = False,
        beat: float = BEAT,
        patience: float = PATIENCE,
    ) -> None:
        """Takes nothing yet.

        Args:
            folder: the folder, on this machine or in a bucket.
            say: takes lines for the user.
            name: the name of the file.
            waits: whether `take` waits for the end of another owner, instead of raising an error.
            beat: seconds between touches.
            patience: seconds without a touch after which an owner elsewhere counts as gone.
        """
        self._folder, self._say, self._waits, self._beat, self._patience = folder, say, waits, beat, patience
        self._claim = claim(folder, name)
        self._taken = self._guarded = False
        self._ended = threading.Event()
        self._toucher = threading.Thread(target=self._touch, daemon=True, name="owner")

    def take(self) -> None:
        """Makes this process the owner; it may wait for `patience`. A second call does nothing.

        Where the file system or the bucket can keep nobody out, `say` tells so.

        Raises:
            UsageError: another process is the owner.
            UserError: the bucket may not be written.
            OSError: the folder does not exist or may not be written.
        """
        if self._taken:
            return
        text = json.dumps(dataclasses.asdict(Owner.this_process()), indent=2) + "\n"
        try:
            while not self._claim.make(text):
                found = self._claim.read()
                if found is None:  # its owner has ended
                    continue
                owner = Owner.read(found.text)
                gone = found if owner is None or owner.is_gone else self._wait_for(owner, found)
                if gone is not None and self._claim.remove(gone):
                    self._say(f"{self._folder}: taken over from {owner or 'an unreadable owner'}, which is gone")
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            self._say(f"{self._folder}: nothing keeps a second process out of this folder; start one alone")
        else:
            self._guarded = True
            self._toucher.start()
        self._taken = True

    def check(self) -> None:
        """Raises UserError if another process has become the owner, because this one was stopped for too long."""
        if not self.holds():
            raise UserError(
                f"{self._folder}: another process took this folder over while this one was stopped; this one writes no "
                "more"
            )

    def holds(self) -> bool:
        """Whether no other process has become the owner."""
        return not self._guarded or self._claim.is_ours()

    def __enter__(self) -> "Ownership":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Gives the folder up. A second call does nothing."""
        self._ended.set()
        if self._guarded:
            self._guarded = False
            self._toucher.join(2)  # a touch may hang with its file system
            self._claim.give_up()

    def _wait_for(self, owner: Owner, found: Found) -> Found | None:
        """Waits for the end of an owner, here only where `waits` is on.

        Returns the file as it is now, if that owner is gone; None if it gave the folder up, or another one has it.

        Raises:
            UsageError: the owner lives, and `waits` is off.
        """
        refusal = UsageError(
            f"{self._folder}: another run has it ({owner}); wait for its end, stop it, or choose another folder"
        )
        if owner.is_here and not self._waits:
            raise refusal
        until_when = "waiting for its end" if self._waits else "waiting whether it is still there"
        self._say(f"{self._folder}: {owner}, has it; {until_when}")
        since = time.monotonic()
        while not owner.is_gone and (owner.is_here or time.monotonic() - since < self._patience):
            time.sleep(self._beat / (50 if owner.is_here else 10))
            now = self._claim.read()
            if now is None or now.text != found.text:
                return None
            if now != found:
                if not self._waits:
                    raise refusal
                found, since = now, time.monotonic()
        return found

    def _touch(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                if not self._claim.touch():
                    return
            except Exception:  # gcsfs raises errors of several libraries; what hinders the next save says more
                continue


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
