"""Prepared records in a bucket: they are copied once to this machine, shard by shard, and read there.

Records are read at random, thousands a second, for which a bucket is too slow. Every start compares the sizes and
checksums of all copied files with those that the bucket states, and copies what is absent or damaged.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from afloc_jax import buckets
from afloc_jax.errors import UserError
from afloc_jax.files import AnyPath, Path, absolute
from data_pipelines.building.build import lock

_LOCK = ".copy.lock"  # an empty file that stays in the cache
_State = tuple[int, int, int]


def copied(folder: Path, cache: AnyPath) -> Path:
    """The copy of a folder of prepared records of a bucket in `cache`, complete and checked.

    Processes of one machine wait for each other and copy every file once. A killed copy goes on at the next call.

    Raises:
        UserError: the bucket may not be read, or the cache not be written.
    """
    source, target = os.fspath(folder), absolute(cache) / folder.name
    buckets.check(source)
    stored = buckets.listing(source)
    try:
        for name in stored:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        missing = _missing(target, stored)
        if missing:
            with lock(Path(cache) / _LOCK):
                _copy(source, target, {name: stored[name] for name in missing}, missing)
    except OSError as error:
        raise UserError(f"{source}: cannot be copied to {cache} ({error.strerror or error})") from error
    return target


def _missing(target: Path, stored: dict[str, buckets.Stored]) -> dict[str, _State | None]:
    """The files of the copy that are absent or damaged, with their states before they were read."""
    states = {name: _state(target / name) for name in stored}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        intact = threads.map(lambda name: buckets.is_intact(target / name, stored[name]), stored)
        return {name: states[name] for name, whole in zip(stored, intact, strict=True) if not whole}


def _state(path: Path) -> _State | None:
    """What changes when a file is replaced; None for no file."""
    if not os.path.isfile(path):
        return None
    found = os.stat(path)  # `files.Path` gives neither nanoseconds nor the number of the file
    return found.st_size, found.st_mtime_ns, found.st_ino


def _copy(source: str, target: Path, stored: dict[str, buckets.Stored], before: dict[str, _State | None]) -> None:
    """Copies files, except those that another process has replaced since their state was `before`."""
    wanted = [name for name in stored if _state(target / name) == before[name]]
    size = sum(stored[name].size for name in wanted)
    # None: no bar on anything but a terminal
    with tqdm(desc=f"copy {target.name}", total=size, unit="B", unit_scale=True, disable=None) as progress:
        for name in wanted:
            buckets.download(f"{source}/{name}", target / name, stored[name])
            progress.update(stored[name].size)
