"""A small file system that can be filled to the last byte, for benchmarks/soak.py: a tmpfs.

Root may mount one. Others may in a name space of their own, where the system lets users make one.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOM = 2**28  # bytes of the file system beside what the working directory takes
_INSIDE = "AFLOC_SOAK_INSIDE"  # set in the name space


def why_not() -> str:
    """Why this process can mount no file system; empty if it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount(Path(folder), 2**20)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip()
            return str(said.splitlines()[-1])
        _unmount(Path(folder))
    return ""


def enter_name_space(module: str, arguments: list[str]) -> None:
    """Starts `python -m module` anew where it may mount file systems, if that helps and is possible."""
    able = ["unshare", "--user", "--map-root-user", "--mount"]
    if _INSIDE in os.environ or not why_not() or not shutil.which(able[0]):
        return
    if subprocess.run([*able, "true"], capture_output=True).returncode == 0:
        os.environ[_INSIDE] = "1"
        os.execvp(able[0], [*able, sys.executable, "-m", module, *arguments])


@contextlib.contextmanager
def on_small_disk(workdir: Path, scratch: Path) -> Iterator[Path]:
    """The working directory on a small file system; it is copied there, and back at the end."""
    disk = scratch / "disk"
    disk.mkdir()
    taken = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    _mount(disk, taken + ROOM)
    try:
        moved = disk / workdir.name
        if workdir.exists():
            shutil.copytree(workdir, moved)
        yield moved
        if workdir.exists():
            shutil.rmtree(workdir)
        if moved.exists():
            shutil.copytree(moved, workdir)
    finally:
        _unmount(disk)
        disk.rmdir()


def fill(workdir: Path, leaving: int) -> None:
    """Takes all space of the file system of a working directory but `leaving` bytes."""
    about = os.statvfs(workdir.parent)
    wanted = about.f_bavail * about.f_frsize - leaving
    with (workdir.parent / "filler").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):  # others write meanwhile
            os.posix_fallocate(file.fileno(), 0, max(wanted, 1))
        if leaving:
            return
        file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass


def _mount(folder: Path, size: int) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
