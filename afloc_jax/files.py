"""One path type, and files that appear whole or not at all.

Working directories, checkpoints, model folders, records and results are read and written through `Path` of this module
alone: it is what etils brings, and knows other kinds of storage beside the local disk.
"""

import os
import re
import tempfile

from etils.epath import Path as Path

from afloc_jax.errors import UsageError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")


def user_path(path: str | os.PathLike[str], name: str) -> Path:
    """A path that a user gave, checked before anything is read or written.

    Args:
        path: as given; "~" is expanded.
        name: what the user calls it, such as "--workdir" or "config.data.directory".

    Raises:
        UsageError: it lies on remote storage, which has not been shown to work yet.
    """
    text = os.fspath(path)
    if _SCHEME.match(text):
        raise UsageError(f"{name} = {text}: remote storage is not supported yet; give a folder of this machine")
    return Path(text).expanduser()


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
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
