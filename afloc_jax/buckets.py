"""Google Cloud Storage: what paths that begin with gs:// need beyond the path type of `files`.

`files.Path` reads and writes single objects of a bucket by gcsfs. An object appears complete or not at all, but a
bucket has no renames and no folders. A folder is therefore written file by file, and one file, without which its
readers refuse the folder, is removed first and written last: the commit marker.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from afloc_jax import extras
from afloc_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    import google_crc32c
    from gcsfs import GCSFileSystem

PREFIX = "gs://"
WRITING = ".writing"  # in a folder that is being written; a killed process leaves it
_BLOCK = 2**22  # bytes of a file that are read at once
_REFUSES_CONDITIONS = (400, 405, 501)  # statuses of HTTP

# Otherwise the path type would use TensorFlow where that is installed, which its first use decides for good.
os.environ["EPATH_USE_TF"] = "false"


@dataclass(frozen=True)
class Stored:
    """What a bucket states of an object, without reading it.

    Attributes:
        size: its bytes.
        digest: "md5:" or "crc32c:" and the checksum in base64. An object that was put together from parts has no MD5.
    """

    size: int
    digest: str


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(PREFIX)


@functools.cache
def make_ready() -> None:
    """Sets gcsfs up for `files.Path`, before the first use of a bucket. Raises UsageError where it is not installed."""
    # Otherwise gcsfs asks a second service for the kind of each bucket, and warns where it may not.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if importlib.util.find_spec("gcsfs") is None:
        raise UsageError(f"gs:// needs the package gcsfs; run: {extras.install('gcs')}")
    import fsspec.config

    # It logs the traceback of an error that it then raises, which becomes one line.
    logging.getLogger("gcsfs").addFilter(lambda record: not record.exc_info)
    # Orbax writes to the bucket by a library of its own, which a cached list of files would not show.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def file_system() -> "GCSFileSystem":
    """The file system that `files.Path` uses."""
    make_ready()
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


def check(path: str, *, writable: bool = False) -> None:
    """Raises UserError of one line where the bucket of `path` does not exist, or may not be read (or written)."""
    bucket, _, prefix = path.removeprefix(PREFIX).partition("/")
    with _one_line(path, "read"):
        file_system().call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1)
    if writable:
        with _one_line(path, "written"):
            probe = f"{path}/.writable"
            file_system().pipe_file(probe, b"")
            file_system().rm_file(probe)


@contextlib.contextmanager
def _one_line(path: str, doing: str) -> Iterator[None]:
    """Turns errors about a bucket into UserError of one line, but for an OSError with ENOTSUP."""
    try:
        yield
    except FileNotFoundError:
        bucket = path.removeprefix(PREFIX).partition("/")[0]
        raise UserError(f"{path}: there is no bucket {bucket}; create it, or correct its name") from None
    except Exception as error:  # gcsfs raises errors of several libraries
        if isinstance(error, OSError) and error.errno == errno.ENOTSUP:
            raise
        told = f"may not be {doing} ({_first_line(error)}); check your credentials and the network"
        raise UserError(f"{path}: {told}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def read_with_generation(path: str) -> tuple[bytes, int] | None:
    """The content of an object and a generation that it had, or has; None if there is none.

    Raises UserError of one line where the bucket does not exist or may not be read.
    """
    bucket, _, name = path.removeprefix(PREFIX).partition("/")
    with _one_line(path, "read"):
        try:
            about = file_system().call("GET", "b/{}/o/{}", bucket, name, json_out=True)
            # If it is replaced in between, the content is newer: no condition with this generation holds then.
            _, content = file_system().call("GET", "b/{}/o/{}", bucket, name, alt="media")
        except FileNotFoundError:
            return None
        return bytes(content), int(about["generation"])


def write_if(path: str, content: bytes, generation: int) -> int | None:
    """Writes an object on the condition that it has this generation; 0 stands for an object that does not exist.

    Returns its new generation; None where the condition does not hold.

    Raises:
        OSError: with ENOTSUP, if the store refuses conditions.
        UserError: of one line, where the bucket does not exist or may not be written.
    """
    bucket, _, name = path.removeprefix(PREFIX).partition("/")
    address = f"{file_system().base.removesuffix('storage/v1/')}upload/storage/v1/b/{{}}/o"
    with _one_line(path, "written"):
        try:
            about = file_system().call(
                "POST",
                address,
                bucket,
                uploadType="media",
                name=name,
                ifGenerationMatch=str(generation),
                headers={"Content-Type": "application/octet-stream"},
                data=content,
                json_out=True,
            )
        except FileExistsError:  # gcsfs's name for status 412
            return None
        except Exception as error:
            if getattr(error, "code", None) in _REFUSES_CONDITIONS:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from error
            raise
    return int(about["generation"])


def remove_if(path: str, generation: int | None) -> bool:
    """Removes an object if it has this generation, or any where that is None; returns whether it did.

    Raises UserError of one line where the bucket may not be written.
    """
    bucket, _, name = path.removeprefix(PREFIX).partition("/")
    condition = None if generation is None else str(generation)
    with _one_line(path, "written"):
        try:
            file_system().call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=condition)
        except (FileExistsError, FileNotFoundError):
            return False
        return True


def listing(folder: str) -> dict[str, Stored]:
    """All objects below a folder of a bucket, by relative path. Raises OSError."""
    root = folder.removeprefix(PREFIX).rstrip("/") + "/"
    found: Mapping[str, Mapping[str, str]] = file_system().find(root, detail=True)
    return {
        name.removeprefix(root): Stored(int(about["size"]), _digest(about))
        for name, about in sorted(found.items())
        if about["type"] == "file" and not name.endswith("/")
    }


def _digest(about: Mapping[str, str]) -> str:
    # Not the CRC32C where there is a choice: it is the same for all files of Orbax that end with their own.
    return f"md5:{about['md5Hash']}" if "md5Hash" in about else f"crc32c:{about['crc32c']}"


def digest_of(file: BinaryIO, like: str) -> str:
    """The digest of a file, of the kind of another one. Raises OSError, or UsageError where gcsfs is not installed."""
    kind = like.partition(":")[0]
    checksum = hashlib.md5(usedforsecurity=False) if kind == "md5" else _crc32c()
    while block := file.read(_BLOCK):
        checksum.update(block)
    return f"{kind}:{base64.b64encode(checksum.digest()).decode()}"


def _crc32c() -> "google_crc32c.Checksum":
    make_ready()
    import google_crc32c  # installed with gcsfs

    return google_crc32c.Checksum()


def is_intact(path: str | os.PathLike[str], stored: Stored) -> bool:
    """Whether a file of this machine has the size and the digest of an object."""
    if not os.path.isfile(path) or os.path.getsize(path) != stored.size:
        return False
    with open(path, "rb") as file:
        return digest_of(file, stored.digest) == stored.digest


def download(source: str, target: str | os.PathLike[str], stored: Stored) -> None:
    """Copies an object to a file, which appears complete and checked or not at all. Raises OSError, UserError."""
    temporary = f"{os.fspath(target)}.copying"
    file_system().get_file(source, temporary)
    if not is_intact(temporary, stored):
        os.unlink(temporary)
        raise UserError(f"{source}: arrived damaged, or changed while it was copied; run the same command again")
    os.replace(temporary, target)


def upload_folder(source: str | os.PathLike[str], folder: str, marker: str) -> None:
    """Replaces a folder of a bucket by one of this machine. Its file `marker` is removed first and written last.

    While it lasts, the folder has an empty object `WRITING`.
    """
    bucket, old = file_system(), listing(folder)
    bucket.pipe_file(f"{folder}/{WRITING}", b"")
    if marker in old:
        bucket.rm_file(f"{folder}/{marker}")
    names = [
        os.path.relpath(os.path.join(place, name), source).replace(os.sep, "/")
        for place, _, found in os.walk(source)
        for name in found
    ]
    for name in (name for name in old if name not in (*names, WRITING)):
        bucket.rm_file(f"{folder}/{name}")
    for name in sorted(names, key=lambda name: (name == marker, name)):
        bucket.put_file(os.path.join(source, name), f"{folder}/{name}")
    bucket.rm_file(f"{folder}/{WRITING}")


def move_folder(source: str, target: str) -> None:
    """Moves all objects below a folder of a bucket to another name of it. Raises OSError."""
    bucket = file_system()
    for name in listing(source):
        bucket.cp_file(f"{source}/{name}", f"{target}/{name}")
        bucket.rm_file(f"{source}/{name}")
