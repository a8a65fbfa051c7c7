"""The path type, and files that are written completely or not at all.

Working directories, checkpoints, model folders, records and results are read and written through `Path` of this module
alone. It is etils' path type, which can also address remote storage.
"""

import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from etils.epath import Path as Path

from afloc_jax.errors import UsageError, UserError

AnyPath: TypeAlias = str | os.PathLike[str]

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")


def user_path(path: AnyPath, name: str = "") -> Path:
    """A path from the user, checked before anything is read or written.

    Args:
        path: the path; "~" is expanded.
        name: the name of the flag or key in errors, such as "--workdir" or "config.data.directory".

    Raises:
        UsageError: the path is on remote storage, which has not been tested yet.
    """
    text = os.fspath(path)
    if _SCHEME.match(text):
        shown = f"{name} = {text}" if name else text
        raise UsageError(f"{shown}: remote storage is not supported yet; give a folder of this machine")
    return Path(text).expanduser()


def matching(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """The paths below a folder that match a pattern such as "*/*.json", sorted; empty where the folder is absent.

    Brackets in the name of the folder are escaped: `Path.glob` would read them as part of the pattern.
    """
    return sorted(Path(glob.escape(os.fspath(folder))).glob(pattern))


def write_whole(path: AnyPath, content: str | bytes) -> None:
    """Writes a file (text as UTF-8) under a temporary name in its folder and renames it.

    A reader sees either the old file or the complete new one. Where writing fails, the temporary file is deleted.
    Raises OSError.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".writing")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)  # mkstemp creates files that only their owner may read
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: AnyPath, content: Any) -> None:
    """Writes indented JSON, completely or not at all. Raises OSError."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV. NaN and None become empty cells; floats keep every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return repr(float(value)) if isinstance(value, float) else value


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` when the block ends, and is deleted when the block raises."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in matching(folder.parent, f".{glob.escape(folder.name)}.writing-*"):  # left by a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    try:
        os.chmod(temporary, 0o755)  # mkdtemp creates private folders, but models and results are shared
        yield temporary
        if folder.exists():
            # A folder cannot be renamed to an existing one that has content, so the old one is renamed first.
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
            os.replace(folder, old / "old")
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: AnyPath, remedy: str = "") -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        remedy: the end of the error message, which says what to do, such as "fetch it again".

    Raises:
        UserError: the file cannot be read or is not JSON. The message names the file and the line, never the content.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}){end}") from None
    except ValueError as error:  # not JSON or not UTF-8; the decoder's own message could quote the content
        line = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}: not valid JSON{line}{end}") from None


def sha256_of(path: AnyPath) -> str:
    """The SHA-256 of a file's bytes in hexadecimal. Raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
