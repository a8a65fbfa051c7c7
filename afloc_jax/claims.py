"""The file that says who has a folder, which exactly one of several processes can make, and what tells its touches.

On a file system it is made by a hard link, also on those of a network, and its time tells when it was touched. In a
bucket it is made by a create with the precondition that there is none. A touch writes it again, on the condition that
it still has the generation which its owner wrote before. `Ownership` decides who may have it.
"""

import contextlib
import errno
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from afloc_jax import buckets

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # how file systems without hard links say so


@dataclass(frozen=True)
class Found:
    """What the file holds.

    Attributes:
        text: its content; empty if it cannot be read as text.
        mark: another one after each touch.
    """

    text: str
    mark: tuple[int, ...]


class Claim(Protocol):
    """The file, as one process sees it."""

    def make(self, text: str) -> bool:
        """Whether there was none and it is this process's now. Where there is one, nothing is written.

        Raises OSError; its number is ENOTSUP where such a file cannot be made so that others are kept out.
        """

    def read(self) -> Found | None:
        """What it holds now; None if there is none."""

    def remove(self, judged: Found) -> bool:
        """Removes it if it is still as `judged`; returns whether it was."""

    def touch(self) -> bool:
        """Shows others that its owner lives. Returns whether this process is still the owner."""

    def is_ours(self) -> bool:
        """Whether it is the file that this process made."""

    def give_up(self) -> None:
        """Removes it if this process made it."""


def claim(folder: str | os.PathLike[str], name: str) -> Claim:
    """The file of this name in a folder on this machine or in a bucket."""
    if buckets.is_bucket(folder):
        return _Object(f"{os.fspath(folder).rstrip('/')}/{name}")
    return _File(Path(folder) / name)


class _File:
    """A file of a file system. Which one it is tells an open handle, whose number no later file gets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def make(self, text: str) -> bool:
        if self._path.exists():
            return False
        temporary = self._aside()
        try:
            temporary.write_text(text, encoding="utf-8")
            try:
                os.link(temporary, self._path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from error
                raise
            self._handle = os.open(temporary, os.O_RDONLY)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def read(self) -> Found | None:
        return _read(self._path)

    def remove(self, judged: Found) -> bool:
        aside = self._aside()
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return False
        same = _read(aside) == judged
        if not same:  # another process has taken over in between, or it was touched: its owner keeps it
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._path)
        aside.unlink()
        return same

    def touch(self) -> bool:
        if not self.is_ours():
            return False
        assert self._handle is not None
        os.utime(self._handle)
        return True

    def is_ours(self) -> bool:
        if self._handle is None:
            return False
        for pause in (0.2, 0.0):  # a process that was too slow with `remove` puts the file back
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._handle), self._path.stat()):
                    return True
            time.sleep(pause)
        return False

    def give_up(self) -> None:
        if self._handle is not None:
            if self.is_ours():
                self._path.unlink(missing_ok=True)
            handle, self._handle = self._handle, None
            os.close(handle)

    def _aside(self) -> Path:
        return self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")


def _read(path: Path) -> Found | None:
    try:
        with path.open("rb") as file:
            about, content = os.fstat(file.fileno()), file.read()
    except OSError:
        return None
    return Found(_text(content), (about.st_ino, about.st_mtime_ns))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return ""


class _Object:
    """An object of a bucket. Which one it is tells its text, for gcsfs may repeat a request whose answer was lost."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._text = ""
        self._generation = 0

    def make(self, text: str) -> bool:
        if self.read() is not None:
            return False
        made = buckets.write_if(self._path, text.encode(), 0)
        self._text = text
        if made is None:
            return self.is_ours()
        self._generation = made
        # A store that lets the same condition hold twice keeps nobody out.
        if buckets.write_if(self._path, text.encode(), 0) is not None:
            self._text = ""
            buckets.remove_if(self._path, None)
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return True

    def read(self) -> Found | None:
        found = buckets.read_with_generation(self._path)
        return None if found is None else Found(_text(found[0]), (found[1],))

    def remove(self, judged: Found) -> bool:
        return buckets.remove_if(self._path, judged.mark[0])

    def touch(self) -> bool:
        written = buckets.write_if(self._path, self._text.encode(), self._generation)
        if written is None:
            return self.is_ours()
        self._generation = written
        return True

    def is_ours(self) -> bool:
        found = self.read()
        if found is None or not self._text or found.text != self._text:
            return False
        self._generation = found.mark[0]
        return True

    def give_up(self) -> None:
        with contextlib.suppress(Exception):  # where the bucket is out of reach, others wait for a minute
            if self.is_ours():
                buckets.remove_if(self._path, self._generation)
        self._text = ""
