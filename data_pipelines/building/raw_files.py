"""The files that a build reads, and their contents: records of other contents are never taken for those of these.

Each file is hashed once. Its size and times are remembered with the hash in the directory of records, and while they
stay the same it is not read again. Names of files are remembered as hashes, because they may tell who a patient is.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path as LocalPath

from afloc_jax.errors import UserError
from afloc_jax.files import Path, sha256_of, write_whole

MEMORY = ".raw_files.json"

Name = tuple[str, str]
"""The argument that names a folder or file (empty: the raw folder), and the path below it."""
Stamp = tuple[int, int, int]
"""Size, time of change of the content, and time of change of the file (nanoseconds). Only the last cannot be set."""


@dataclass
class RawFiles:
    """The files of a build, those behind links and in other folders included.

    Attributes:
        stamps: name -> path and stamp.
        again: folders that a link shows a second time, by the name under which their files are listed.
    """

    stamps: dict[Name, tuple[LocalPath, Stamp]] = field(default_factory=dict)
    again: dict[Name, str] = field(default_factory=dict)

    def add(self, argument: str, files: Iterable[LocalPath]) -> None:
        """Adds single files."""
        self.stamps |= {(argument, str(path)): (path, _stamp(path)) for path in files}

    def add_below(self, argument: str, root: LocalPath, without: Path) -> None:
        """Adds every file below a folder, except those in the folder `without`."""
        seen: dict[tuple[int, int], str] = {}  # by device and number, so that links in a circle end
        for folder, folders, names in os.walk(root, followlinks=True):
            status, below = os.stat(folder), os.path.relpath(folder, root)
            first = seen.setdefault((status.st_dev, status.st_ino), below)
            if first != below or (below != "." and without.is_dir() and os.path.samefile(folder, os.fspath(without))):
                folders.clear()
                if first != below:
                    self.again[argument, below] = first
                continue
            folders.sort()
            paths = [LocalPath(folder, name) for name in names if name != MEMORY]
            self.stamps |= {
                (argument, path.relative_to(root).as_posix()): (path, _stamp(path)) for path in paths if path.is_file()
            }

    def check_unchanged(self) -> None:
        """Raises UserError if a file has changed since it was listed, as records would then be of neither content."""
        changed = sum(_stamp(path) != stamp for path, stamp in self.stamps.values())
        if changed:
            raise UserError(f"{changed:,} raw files changed while records were built from them; run the command again")


class Memory:
    """The hashes of files that were read before, in a directory of records."""

    def __init__(self, directory: Path):
        self._path = directory / MEMORY
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # missing or damaged: the files are read again
            known = {}
        self._known: dict[str, tuple[Stamp, str]] = {}
        for key, entry in known.items() if isinstance(known, dict) else ():
            if isinstance(entry, list) and len(entry) == 4:
                self._known[key] = ((entry[0], entry[1], entry[2]), entry[3])

    def identity(self, files: RawFiles) -> str | None:
        """The identity of names and contents; None if a file has to be read for it."""
        contents = []
        for name, (path, stamp) in files.stamps.items():
            known = self._known.get(_key(path))
            if known is None or known[0] != stamp:
                return None
            contents.append((name, known[1]))
        return _identity(files, contents)

    def read(self, files: RawFiles, workers: int) -> str:
        """The identity of names and contents. New files, and those with other sizes or times, are read."""
        keys = {name: _key(path) for name, (path, _) in files.stamps.items()}
        unknown = [name for name, (_, stamp) in files.stamps.items() if self._known.get(keys[name], ("",))[0] != stamp]
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            digests = dict(zip(unknown, pool.map(lambda name: _digest(files.stamps[name][0]), unknown), strict=True))
        before = {name: self._known[keys[name]][1] for name in unknown if keys[name] in self._known}
        changed = sum(digest != digests[name] for name, digest in before.items())
        if changed:
            print(f"{changed} of {len(keys)} raw files have changed since they were read", file=sys.stderr)
        if len(before) > changed:
            same = len(before) - changed
            print(f"{same} of {len(keys)} raw files have other times and the same content", file=sys.stderr)
        self._known |= {keys[name]: (files.stamps[name][1], digest) for name, digest in digests.items() if digest}
        contents = [(name, digests[name] if name in digests else self._known[keys[name]][1]) for name in files.stamps]
        text = json.dumps({key: [*stamp, digest] for key, (stamp, digest) in sorted(self._known.items())}, indent=0)
        if digests:
            write_whole(self._path, text + "\n")
        return _identity(files, contents)


def _identity(files: RawFiles, contents: list[tuple[Name, str]]) -> str:
    return json.dumps([sorted(contents), sorted(files.again.items())])


def _stamp(path: LocalPath) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0  # removed meanwhile
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(path: LocalPath) -> str:
    try:
        return sha256_of(path)
    except OSError:
        return ""  # an unreadable image is reported when it is decoded


def _key(path: LocalPath) -> str:
    return hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()
