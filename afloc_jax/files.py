"""One path type, and files that appear whole or not at all.

Working directories, checkpoints, model folders, records and results are read and written through `Path` of this module
alone: it is what etils brings, and knows other kinds of storage beside the local disk.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from etils.epath import Path as Path

from afloc_jax.errors import UsageError, UserError

AnyPath: TypeAlias = str | os.PathLike[str]

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")


def user_path(path: AnyPath, name: str = "") -> Path:
    """A path that a user gave, checked before anything is read or written.

    Args:
        path: as given; "~" is expanded.
        name: what the user calls it, such as "--workdir" or "config.data.directory".

    Raises:
        UsageError: it lies on remote storage, which has not been shown to work yet.
    """
    text = os.fspath(path)
    if _SCHEME.match(text):
        shown = f"{name} = {text}" if name else text
        raise UsageError(f"{shown}: remote storage is not supported yet; give a folder of this machine")
    return Path(text).expanduser()


def matching(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """Paths below a folder that match a pattern such as "*/*.json", sorted; none where the folder is absent.

    `Path.glob` would read brackets in the name of the folder as a part of the pattern.
    """
    return sorted(Path(glob.escape(os.fspath(folder))).glob(pattern))


def write_whole(path: AnyPath, content: str | bytes) -> None:
    """Write a file under another name in its folder first (text as UTF-8), then rename it.

    A reader meets the old file or the new one, and what was begun leaves nothing. Raises OSError.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".writing")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: AnyPath, content: Any) -> None:
    """Write readable JSON; the file appears whole. Raises OSError."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well and vanishes when it does not."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in matching(folder.parent, f".{glob.escape(folder.name)}.writing-*"):  # left by a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    try:
        os.chmod(temporary, 0o755)  # mkdtemp makes private folders; a model is meant to be shared
        yield temporary
        if folder.exists():
            # A folder cannot be renamed over a full one, so the old one steps aside first.
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
        remedy: what the reader of an error should do, such as "fetch it again".

    Raises:
        UserError: the file cannot be read or holds no JSON. The message names the file and the line, never the content.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}){end}") from None
    except ValueError as error:  # neither JSON nor UTF-8; what the decoder says could quote the content
        line = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}: not valid JSON{line}{end}") from None


def sha256_of(path: AnyPath) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
