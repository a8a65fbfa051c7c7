"""Assignment of splits: all images of a patient, and identical images, are in the same split."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scipy.cluster.hierarchy import DisjointSet

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import sha256_of
from afloc_jax.tables import Row
from data_pipelines.building.items import SPLITS, Item, listed
from data_pipelines.images import ImageError

_SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "validate": "validation",
    "testing": "test",
}


def split_of(row: Row) -> str:
    """The normal form of the cell `split` of a row ("Val" -> "validation"); empty if there is none.

    Raises ImageError that names the row but not the cell, which may be a report or a patient if columns are shifted.
    """
    name = row.get("split", "").lower()
    if name and name not in _SPLIT_NAMES:
        what = f"unknown split; use {', '.join(SPLITS)} or leave the cell empty"
        raise ImageError(str(row.fault("split", what)))
    return _SPLIT_NAMES.get(name, "")


def assign_splits(
    items: Sequence[Item],
    fractions: Mapping[str, float],
    seed: int,
    workers: int = 1,
    content: bool = True,
    drop_leaks: bool = False,
) -> list[Item]:
    """Assigns a split to every item, in place.

    Rows of one patient form a group, and so do rows whose image files have identical bytes (unless `content` is False,
    which reads no files). Rows without a patient are groups of their own. All rows of a group get the same split. If
    none of them names one, a hash of the group and the seed decides, so that new rows never move old patients.

    Returns the items to keep. All are kept, unless the table itself puts a patient or an image into two splits and
    `drop_leaks` is on: then the evaluation side (test before validation before train) keeps its rows, and the other
    rows are dropped.

    Raises UserError for such a table without `drop_leaks`.
    """
    fractions = check_fractions(fractions)
    all_files = any(not item.patient for item in items)
    digests = _content_hashes([item.image for item in items], workers, all_files) if content else {}
    groups = DisjointSet()
    keys = []
    for item in items:
        image_key = ("image", digests.get(item.image, str(item.image)))
        keys.append(("patient", item.patient) if item.patient else image_key)
        groups.add(keys[-1])
        groups.add(image_key)
        groups.merge(keys[-1], image_key)
    if not drop_leaks:
        _refuse_leaks(items, lambda item: item.patient, "patient")
        _refuse_leaks(items, lambda item: digests.get(item.image, ""), "image content")

    members: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for key, item in zip(keys, items, strict=True):
        members[groups[key]].append(item)
    left_out: set[int] = set()
    for group in members.values():
        named = {item.split for item in group if item.split}
        if len(named) > 1 and drop_leaks:
            named = {max(named, key=SPLITS.index)}
            left_out.update(id(item) for item in group if item.split and item.split not in named)
        if len(named) > 1:  # e.g. patients A and B share an image but are in different splits
            places = listed([item.place for item in group if item.split and item.place])
            raise UserError(f"rows tied by patient or identical image lie in {' and '.join(sorted(named))}: {places}")
        name = min(item.patient or digests.get(item.image) or item.image.name for item in group)
        chosen = named.pop() if named else _hashed_split(f"{seed}:{name}", fractions)
        for item in group:
            item.split = chosen
    return [item for item in items if id(item) not in left_out]


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """The fractions in the order train, validation, test. Raises UsageError unless they are valid and sum to 1."""
    unknown = sorted(set(fractions) - set(SPLITS))
    if unknown:
        raise UsageError(f"unknown split {', '.join(unknown)} in fractions; use {', '.join(SPLITS)}")
    result = {name: float(fractions[name]) for name in SPLITS if name in fractions}
    if any(not 0 <= value <= 1 for value in result.values()) or not math.isclose(sum(result.values()), 1, abs_tol=1e-6):
        raise UsageError(f"split fractions {result} must lie between 0 and 1 and sum to 1")
    return result


def _content_hashes(paths: Sequence[Path], workers: int, all_files: bool) -> dict[Path, str]:
    """The SHA-256 of files, in threads. Without `all_files`, only files of the same size as another one are read."""
    sizes = {path: path.stat().st_size for path in dict.fromkeys(paths) if path.is_file()}
    shared = Counter(sizes.values())
    wanted = [path for path, size in sizes.items() if all_files or shared[size] > 1]

    def digest(path: Path) -> str:
        try:
            return sha256_of(path)
        except OSError:
            return ""  # an unreadable image is reported when it is decoded

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return {path: value for path, value in zip(wanted, pool.map(digest, wanted), strict=True) if value}


def _refuse_leaks(items: Sequence[Item], key: Callable[[Item], str], what: str) -> None:
    sides: dict[str, dict[str, str]] = defaultdict(dict)  # key -> split -> the place of its first item there
    for item in items:
        if item.split and key(item):
            sides[key(item)].setdefault(item.split, item.place)
    leaking = [places for places in sides.values() if len(places) > 1]
    if leaking:
        examples = listed(
            [" and ".join(f"{at} in {split}".strip() for split, at in sorted(places.items())) for places in leaking]
        )
        raise UserError(
            f"build stopped: {len(leaking)} {what}{'s' if len(leaking) > 1 else ''} on both sides of a split "
            f"({examples}); put all rows of one {what.split()[0]} into one split"
        )


def _hashed_split(key: str, fractions: Mapping[str, float]) -> str:
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    total = 0.0
    for name, fraction in fractions.items():
        total += fraction
        if position < total:
            return name
    return [name for name, fraction in fractions.items() if fraction > 0][-1]
