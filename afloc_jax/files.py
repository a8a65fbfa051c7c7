"""The path type, and files that are written completely or not at all.

Working directories, checkpoints, model folders, records and results are read and written through `Path` of this module
alone. It is etils' path type, which can also address buckets (gs://). Working directories and model folders may lie
there (see `buckets`); all else lies on this machine.
"""

import contextlib
import csv
import errno
import functools
import glob
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from etils.epath import Path as Path

from afloc_jax import buckets
from afloc_jax.errors import UsageError, UserError
from afloc_jax.settings import Json

AnyPath: TypeAlias = str | os.PathLike[str]

LARGEST_FILE = 1 << 30  # bytes of a file that is read at once
LARGEST_JSON = 1 << 28  # bytes of a JSON file, whose content may take twenty times as much memory
_MOST_DIGITS = 4300  # of a number that Python converts
_TEXT_OR_END = re.compile(r'"(?:[^"\\]|\\.)*+"|}')  # of a JSON text: a string, or the end of an object
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # in a JSON text: a surrogate, which is no letter on its own
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")


def user_path(path: AnyPath, name: str = "") -> Path:
    """A path from the user on this machine, checked before anything is read or written.

    Args:
        path: the path; "~" is expanded.
        name: the name of the flag or key in errors, such as "--raw" or "config.data.directory".

    Raises:
        UsageError: the path is on remote storage.
    """
    text = os.fspath(path)
    if _SCHEME.match(text):
        shown = f"{name} = {text}" if name else text
        raise UsageError(f"{shown}: remote storage is not supported yet; give a folder of this machine")
    return Path(text).expanduser()


def bucket_path(path: AnyPath, name: str = "") -> Path:
    """A path from the user on this machine or in a bucket. Working directories and model folders may lie in both.

    Raises:
        UsageError: the path is on other remote storage, names no bucket, or the package for buckets is not installed.
    """
    text = os.fspath(path)
    if not buckets.is_bucket(text):
        return user_path(path, name)
    try:
        if not text.removeprefix(buckets.PREFIX).split("/")[0]:
            raise UsageError("names no bucket; write gs://BUCKET/FOLDER")
        buckets.make_ready()
    except UsageError as error:
        raise UsageError(f"{name} = {text}: {error}" if name else f"{text}: {error}") from None
    return Path(text)


def absolute(path: AnyPath) -> Path:
    """The absolute path. Those of buckets are absolute already, which etils' `absolute` and `resolve` do not know."""
    return Path(path) if buckets.is_bucket(path) else Path(os.path.abspath(path))


def matching(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """The paths below a folder that match a pattern such as "*/*.json", sorted; empty where the folder is absent.

    Brackets in the name of the folder are escaped: `Path.glob` would read them as part of the pattern.
    """
    return sorted(Path(glob.escape(os.fspath(folder))).glob(pattern))


def write_whole(path: AnyPath, content: str | bytes | Iterable[str]) -> None:
    """Writes a file (text as UTF-8, in parts where it is long) under a temporary name in its folder and renames it.

    A reader sees either the old file or the complete new one, also after a power cut. Where writing fails, the
    temporary file is deleted. In a bucket objects appear complete by themselves. Raises OSError.
    """
    target = Path(path)
    parts = (content,) if isinstance(content, str | bytes) else content
    encoded = (part.encode() if isinstance(part, str) else part for part in parts)
    if buckets.is_bucket(target):
        target.write_bytes(b"".join(encoded))
        return
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".writing")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(encoded)
            os.fchmod(file.fileno(), 0o644)  # mkstemp creates files that only their owner may read
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(path: AnyPath) -> None:
    """Waits until a file, or the names in a folder, are on the disk. In a bucket they are. Raises OSError."""
    if buckets.is_bucket(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems cannot sync folders
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def sync_folder(folder: AnyPath) -> None:
    """Waits until all files below a folder, their names and its own are on the disk. Raises OSError."""
    if buckets.is_bucket(folder):
        return
    for place, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(place, name))
        sync(place)
    sync(absolute(folder).parent)


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder to a name that does not exist, on this machine or within a bucket. Raises OSError."""
    if buckets.is_bucket(source):
        buckets.move_folder(os.fspath(source), os.fspath(target))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    sync(source.parent)
    sync(target.parent)


def check_space(folder: AnyPath, needed: int, what: str) -> None:
    """Raises UserError where the disk of a folder has less free space than `needed` bytes for `what`."""
    if buckets.is_bucket(folder):
        return
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: no space left on its disk for {what}, which takes {needed / 2**20:,.0f} MiB where "
            f"{free / 2**20:,.0f} are free; free some and run the same command again"
        )


def write_json(path: AnyPath, content: Any) -> None:
    """Writes indented JSON, completely or not at all. Raises OSError."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV. NaN and None become empty cells; floats keep every digit."""
    return "".join(csv_lines([columns, *rows]))


def csv_lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The lines of `csv_text`, one after the other."""
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in row])
        yield text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return repr(float(value)) if isinstance(value, float) else value


@contextlib.contextmanager
def replacing_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A temporary folder of this machine that replaces `folder` when the block ends.

    Args:
        folder: the folder to replace, which is left as it is when the block raises.
        marker: the file without which readers refuse the folder. In a bucket it is removed first and written last.

    Raises:
        UserError: the bucket does not exist or may not be written.
    """
    if buckets.is_bucket(folder):
        buckets.check(os.fspath(folder), writable=True)
        with tempfile.TemporaryDirectory(prefix="afloc_") as made:
            yield Path(made)
            buckets.upload_folder(made, os.fspath(folder), marker)
        return
    folder = absolute(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in matching(folder.parent, f".{glob.escape(folder.name)}.writing-*"):  # left by a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    try:
        os.chmod(temporary, 0o755)  # mkdtemp creates private folders, but models and results are shared
        yield temporary
        sync_folder(temporary)
        if folder.exists():
            # A folder cannot be renamed to an existing one that has content, so the old one is renamed first.
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
            os.replace(folder, old / "old")
            os.replace(temporary, folder)
            sync(folder.parent)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hashes(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder, by relative path. Raises OSError.

    On this machine it is the SHA-256 in hexadecimal; in a bucket what the bucket states, see `buckets.Stored`.
    """
    if buckets.is_bucket(folder):
        return {name: stored.digest for name, stored in buckets.listing(os.fspath(folder)).items()}
    files = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    return {name: sha256_of(folder / name) for name in files}


def hash_of(path: AnyPath, like: str) -> str:
    """The hash of a file, of the kind of another one that `hashes` gave. Raises OSError."""
    if ":" not in like:
        return sha256_of(path)
    with Path(path).open("rb") as file:
        return buckets.digest_of(file, like)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():  # etils has no rglob
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def fetched(folder: AnyPath) -> Path:
    """The folder itself on this machine; for one in a bucket a copy, which is deleted when the process ends.

    A second call copies only what has changed. Raises UserError where the bucket cannot be read.
    """
    if not buckets.is_bucket(folder):
        return Path(folder)
    source = os.fspath(folder)
    buckets.check(source)
    found = buckets.listing(source)
    names = json.dumps([source, *found])  # a copy holds the files of the folder and no others
    copy = Path(_scratch().name) / hashlib.sha256(names.encode()).hexdigest()
    copy.mkdir(exist_ok=True)
    for name, stored in found.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if not buckets.is_intact(copy / name, stored):
            buckets.download(f"{source}/{name}", copy / name, stored)
    return copy


@functools.cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="afloc_fetched_")


def read_regular(path: AnyPath, most: int = LARGEST_FILE) -> bytes:
    """The bytes of a file, which is checked before it is opened: reading cannot wait, and takes at most `most` bytes.

    Raises OSError, also for a device, a pipe or a socket, a name that no file can have, and a larger file.
    """
    if buckets.is_bucket(path):
        return Path(path).read_bytes()
    size = check_regular(path)
    if size > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes")
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(size)


def check_regular(path: AnyPath) -> int:
    """The size of a file in bytes. Raises OSError unless it is a regular file, which reading cannot wait for."""
    try:
        status = os.stat(path)
    except ValueError:  # NUL or half of a surrogate pair in the name
        raise OSError(errno.EINVAL, "not a file name") from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else "not a regular file")
    return status.st_size


def read_json(path: AnyPath, remedy: str = "", most: int = LARGEST_JSON) -> Any:
    """The content of a JSON file in UTF-8. Numbers of more than 4,300 digits become floats.

    Args:
        path: the file.
        remedy: the end of the error message, which says what to do, such as "fetch it again".
        most: bytes that the file may have.

    Raises:
        UserError: the file cannot be read, is not JSON, is nested too deeply, has an object with one key twice, or a
            text with half of a surrogate pair. The message names the file and the line, never the content.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        text, objects = read_regular(path, most).decode("utf-8-sig"), _Distinct()
        try:
            return _checked(json.loads(text, object_pairs_hook=objects), text)
        except _RepeatedKeyError:
            raise UserError(
                f"{path}: a key comes twice in the object that ends at {objects.place(text)}{end}"
            ) from None
        except (json.JSONDecodeError, UnicodeError):
            raise
        except ValueError:  # Python converts no number of that many digits
            return _checked(json.loads(text, object_pairs_hook=_Distinct(), parse_int=_whole_number), text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}){end}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON for this program, nested too deeply{end}") from None
    except ValueError as error:  # not JSON or not UTF-8; the decoder's own message could quote the content
        line = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        half = ", a text holds half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else ""
        raise UserError(f"{path}: not valid JSON{line}{half}{end}") from None


def _checked(content: Json, text: str) -> Json:
    """The content of a JSON text. Raises UnicodeEncodeError if it holds half of a surrogate pair: no file can."""
    if _HALF_A_PAIR.search(text):
        json.dumps(content, ensure_ascii=False).encode()
    return content


class _RepeatedKeyError(Exception):
    """An object has a key twice, of which Python would keep the last value."""


class _Distinct:
    """Makes the objects of a JSON text, in the order of their ends."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        self.count += 1
        content = dict(pairs)
        if len(content) < len(pairs):
            raise _RepeatedKeyError
        return content

    def place(self, text: str) -> str:
        """Where the last object of the text that was made ends."""
        ends = (token.start() for token in _TEXT_OR_END.finditer(text) if token[0] == "}")
        before = text[: next(itertools.islice(ends, self.count - 1, None))]
        return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)


def sha256_of(path: AnyPath) -> str:
    """The SHA-256 of a file's bytes in hexadecimal. Raises OSError, also for a pipe or a device."""
    if not buckets.is_bucket(path):
        check_regular(path)  # reading a pipe would wait for ever
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
