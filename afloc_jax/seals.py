"""Seals: a file beside others holds their SHA-256, by which damage and changes are noticed.

    {"format_version": 1, "files": {"model.safetensors": "9f86d081...", ...}}

A seal protects against failing disks, incomplete copies and edits by mistake. Whoever can write the files can write the
seal as well.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from afloc_jax.errors import UserError
from afloc_jax.files import Path, fetched, hash_of, hashes, read_json, sha256_of, write_json
from afloc_jax.settings import Json

SEAL = "seal.json"
FORMAT_VERSION = 1
_LARGEST_SEAL = 1 << 22  # bytes; a checkpoint of hundreds of files has a hundredth


class NewerFormat(UserError):
    """A file was written by a later version of this program."""


def check_version(path: Path, version: Json) -> None:
    """Refuses a format version that this program does not know. None, that of earlier versions, is read.

    Raises:
        NewerFormat: a later version of this program wrote the file.
        UserError: there is no such version.
    """
    if version is None or (type(version) is int and 1 <= version <= FORMAT_VERSION):
        return
    if type(version) is int and version > FORMAT_VERSION:
        raise NewerFormat(
            f"{path} has format_version {version}, this program reads up to {FORMAT_VERSION}; update afloc_jax"
        )
    raise UserError(f"{path}: its format_version is none that this program ever wrote; copy the folder again")


def difference(folder: Path, expected: Mapping[str, str], skipped: Iterable[str] = ()) -> str:
    """How the files below a folder differ from their hashes; empty if there are these files and no others.

    Args:
        folder: the folder, on this machine or in a bucket.
        expected: the hash of each file by its path below the folder, of any kind that `files.hashes` gives.
        skipped: paths that are not compared.
    """
    found = {name: hash for name, hash in hashes(folder).items() if name not in skipped}
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"lacks {name}"
        if name not in expected:
            return f"holds a file that does not belong there, {name}"
        # A folder that was copied to a bucket or from one has hashes of another kind.
        if found[name] != expected[name] and hash_of(folder / name, expected[name]) != expected[name]:
            return f"is damaged in {name}"
    return ""


def write_seal(folder: Path, without: Sequence[str] = ()) -> None:
    """Seals all files directly in a folder but those of `without`. Raises OSError."""
    names = [path.name for path in folder.iterdir() if path.name not in (SEAL, *without)]
    found = {name: sha256_of(folder / name) for name in sorted(names)}
    write_json(folder / SEAL, {"format_version": FORMAT_VERSION, "files": found})


def renew_seal(folder: Path, names: Iterable[str]) -> None:
    """Seals files that were written anew; a folder without a seal stays without one. Raises OSError, UserError."""
    sealed = read_seal(folder)
    if sealed is not None:
        renewed = {name: sha256_of(folder / name) for name in names}
        write_json(folder / SEAL, {"format_version": FORMAT_VERSION, "files": {**sealed, **renewed}})


def read_seal(folder: Path) -> dict[str, str] | None:
    """The SHA-256 of each sealed file; None where a folder has no seal, as those of earlier versions.

    Raises:
        NewerFormat: see `check_version`.
        UserError: the seal is unreadable, or its version is none.
    """
    path = folder / SEAL
    if not path.is_file():
        return None
    content = read_json(path, "copy the folder again", _LARGEST_SEAL)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(_is_plain(name, hash) for name, hash in files.items()):
        raise UserError(f"{path}: is not a seal; copy the folder again")
    check_version(path, content.get("format_version"))
    return files


def _is_plain(name: str, hash: Json) -> bool:
    """Whether a name stays within the folder, and its hash is a text."""
    return isinstance(hash, str) and name == Path(name).name and name not in ("", ".", "..")


class Verification:
    """The comparison of the files of a folder with its seal, in threads."""

    def __init__(self, folder: Path, is_read: Callable[[str], bool]) -> None:
        """Reads the seal.

        Args:
            folder: a folder of this machine. Without a seal nothing is compared.
            is_read: tells the names of the files that matter. A change of another one is a warning on stderr.

        Raises:
            UserError: the seal is unreadable, or of a later version.
        """
        self._folder, self._is_read = folder, is_read
        self._sealed = read_seal(folder)
        self._hashed: dict[str, Future[str]] = {}

    def begin(self) -> "Verification":
        """Begins to hash the sealed files, which slows down what else is done on few cores."""
        threads = ThreadPoolExecutor()  # hashing releases the interpreter
        self._hashed = {name: threads.submit(_sha256, self._folder / name) for name in self._sealed or {}}
        threads.shutdown(wait=False)
        return self

    def finish(self) -> None:
        """Waits for the hashes and compares them; a second call returns at once. `begin` comes before.

        Raises:
            UserError: a file that matters is missing, differs, or is not sealed.
        """
        sealed = self._sealed  # which another thread may set to None meanwhile
        if sealed is None:
            return
        found = {name: one.result() for name, one in self._hashed.items()}
        for problem, name in _problems(self._folder, sealed, found, self._is_read):
            if self._is_read(name):
                raise UserError(f"{problem}; copy the folder again (delete {SEAL} if you changed it on purpose)")
            print(f"afloc: warning: {problem}; it is used as it is", file=sys.stderr)
        self._sealed = None


def problems(folder: Path, is_read: Callable[[str], bool]) -> list[tuple[str, str]]:
    """What is wrong with the files of a sealed folder: a line and the name of the file for each. See `Verification`."""
    place = fetched(folder)
    sealed = read_seal(place) or {}
    return list(_problems(place, sealed, {name: _sha256(place / name) for name in sealed}, is_read))


def _problems(
    folder: Path, sealed: Mapping[str, str], found: Mapping[str, str], is_read: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    for name, hash in sealed.items():
        if found[name] != hash:
            what = "is not the file that was sealed" if found[name] else "is missing or unreadable"
            yield f"{folder / name} {what}", name
    for path in sorted(folder.iterdir()):
        if path.name not in sealed and is_read(path.name):
            yield f"{path} is not sealed: it was added later", path.name


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:
        return ""
