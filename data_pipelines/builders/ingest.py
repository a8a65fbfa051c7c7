"""What builders of user folders share: tables, bad images, patients and splits, and the account of what was left out.

Report text is patient data. Nothing here puts it into an error or a report: a row is named by its image file, a patient
by a pseudonym.
"""

import abc
import csv
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from afloc_jax.errors import UsageError, UserError
from data_pipelines.images import Geometry, ImageError, encode_png, read_image, read_mask
from data_pipelines.records import IMAGE_SIZE, record_features

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "validate": "validation",
    "testing": "test",
}
_LISTED_IN_ERRORS = 3  # file names shown in an error; the build report has them all


@dataclass
class MaskedFinding:
    """One annotated finding of one image; several mask files are united."""

    label: str
    prompt: str
    masks: list[Path]


@dataclass
class Item:
    """One row of a user's table on its way to a record."""

    id: str
    image: Path
    patient: str = ""  # as in the table; never written anywhere
    view: str = ""
    split: str = ""  # empty: decided by the fractions
    sentences: list[str] = field(default_factory=list)
    impression_count: int = 0
    findings: list[MaskedFinding] = field(default_factory=list)


class BuildReport:
    """Counts records, rejected rows (broken files) and dropped rows (fine, but filtered out)."""

    def __init__(self, max_bad_fraction: float = 0.05):
        if not 0 <= max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {max_bad_fraction}, must lie between 0 and 1")
        self.max_bad_fraction = max_bad_fraction
        self.rows = 0
        self.records: Counter[str] = Counter()
        self.patients: dict[str, set[str]] = defaultdict(set)
        self.rejected: list[dict[str, str]] = []
        self.dropped: Counter[str] = Counter()

    def reject(self, item: Item, reason: str) -> None:
        """Notes a broken row. Raises UserError as soon as more than the allowed fraction of all rows is broken."""
        self.rejected.append({"image": item.image.name, "reason": reason.removeprefix(f"{item.image.name}: ")})
        allowed = self.max_bad_fraction * self.rows
        if len(self.rejected) > allowed:
            shown = "; ".join(f"{entry['image']}: {entry['reason']}" for entry in self.rejected[:_LISTED_IN_ERRORS])
            more = len(self.rejected) - _LISTED_IN_ERRORS
            raise UserError(
                f"build stopped: {len(self.rejected)} of {self.rows} images are unusable, more than max_bad_fraction="
                f"{self.max_bad_fraction:g} allows ({shown}{f'; and {more} more' if more > 0 else ''}); mend or remove "
                "them, or raise max_bad_fraction"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the same input gives the same report."""
        return {
            "rows": self.rows,
            "records": {split: self.records[split] for split in SPLITS if self.records[split]},
            "patients": {split: len(self.patients[split]) for split in SPLITS if self.patients[split]},
            "dropped": dict(sorted(self.dropped.items())),
            "rejected": sorted(self.rejected, key=lambda entry: (entry["image"], entry["reason"])),
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_table(path: Path, required: Sequence[str], purpose: str) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, values stripped, missing cells as "".

    Raises UserError when the file is missing, not UTF-8, empty, or lacks one of the `required` columns.
    """
    if not path.is_file():
        raise UserError(f"no table {path.name} in {path.parent}: {purpose}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            found = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in required if name not in found]
            if missing:
                raise UserError(
                    f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has "
                    f"{', '.join(found) or 'no header'}: {purpose}"
                )
            reader.fieldnames = found
            rows = [{key: value.strip() for key, value in row.items() if isinstance(value, str)} for row in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV file ({error})") from None
    if not rows:
        raise UserError(f"{path} has a header but no row")
    return rows


def unique_ids(images: Iterable[str]) -> list[str]:
    """Record ids from image names: the name itself, with "#2", "#3", ... for an image that comes again."""
    seen: Counter[str] = Counter()
    ids = []
    for image in images:
        seen[image] += 1
        ids.append(image if seen[image] == 1 else f"{image}#{seen[image]}")
    return ids


def split_name(value: str) -> str:
    """Normal form of a split column's cell ("Val" -> "validation"); empty stays empty. Raises UserError."""
    name = value.strip().lower()
    if name and name not in _SPLIT_NAMES:
        raise UserError(f"unknown split {value!r} in the split column; use {', '.join(SPLITS)} or leave the cell empty")
    return _SPLIT_NAMES.get(name, "")


def pseudonym(patient: str, seed: int = 0) -> str:
    """A stable name for a patient that does not show the original identifier."""
    return hashlib.sha256(f"{seed}:patient:{patient}".encode()).hexdigest()[:12] if patient else ""


def assign_splits(items: Sequence[Item], fractions: Mapping[str, float], seed: int, workers: int = 1) -> None:
    """Gives every item a split, whole patients at a time. Sets `item.split` in place.

    Rows of one patient belong together, and so do rows whose image files have identical bytes. Rows without a patient
    stand alone. Where no row of such a group names a split, a hash of the group and the seed decides, so new rows never
    move old patients.

    Raises UserError when the table itself puts one patient or one image on both sides of a split.
    """
    fractions = check_fractions(fractions)
    digests = _content_hashes([item.image for item in items], workers, everything=any(not i.patient for i in items))
    groups = _Groups()
    keys = []
    for item in items:
        content = digests.get(item.image)
        image_key = ("image", content if content is not None else str(item.image))
        keys.append(("patient", item.patient) if item.patient else image_key)
        groups.join(keys[-1], image_key)
    _refuse_leaks(items, lambda item: item.patient, "patient", lambda patient: pseudonym(patient, seed))
    _refuse_leaks(items, lambda item: digests.get(item.image, ""), "image content", lambda digest: digest[:12])

    members: dict[Any, list[Item]] = defaultdict(list)
    for key, item in zip(keys, items, strict=True):
        members[groups.find(key)].append(item)
    for group in members.values():
        named = {item.split for item in group if item.split}
        if len(named) > 1:  # a chain: patient A shares an image with patient B of another split
            names = sorted({pseudonym(item.patient, seed) or item.image.name for item in group})
            raise UserError(
                f"rows tied by patient or identical image lie in {' and '.join(sorted(named))}: {names[:4]}"
            )
        name = min(item.patient or digests.get(item.image) or item.image.name for item in group)
        chosen = named.pop() if named else _hashed_split(f"{seed}:{name}", fractions)
        for item in group:
            item.split = chosen


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """Split fractions in the order train, validation, test. Raises UsageError unless they are valid and sum to 1."""
    unknown = sorted(set(fractions) - set(SPLITS))
    if unknown:
        raise UsageError(f"unknown split {', '.join(unknown)} in fractions; use {', '.join(SPLITS)}")
    result = {name: float(fractions[name]) for name in SPLITS if name in fractions}
    if any(not 0 <= value <= 1 for value in result.values()) or not math.isclose(sum(result.values()), 1, abs_tol=1e-6):
        raise UsageError(f"split fractions {result} must lie between 0 and 1 and sum to 1")
    return result


class FolderBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders that read a user's folder: subclasses turn it into items, this class into records.

    Images are decoded in `workers` threads while records are written; a broken one is reported and left out.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        raw: str | Path,
        image_size: int = IMAGE_SIZE,
        seed: int = 0,
        max_bad_fraction: float = 0.05,
        workers: int = 4,
        **kwargs: Any,
    ):
        self.raw, self.image_size, self.seed, self.workers = Path(raw), int(image_size), int(seed), max(1, int(workers))
        if not 16 <= self.image_size <= 4096:
            raise UsageError(f"image_size is {image_size}, must lie between 16 and 4096 pixels")
        self.report = BuildReport(max_bad_fraction)
        super().__init__(**kwargs)

    @abc.abstractmethod
    def items(self) -> list[Item]:
        """All usable rows of the raw folder, each with its split; notes dropped rows in `self.report`."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=record_features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        if not self.raw.is_dir():
            raise UserError(f"no folder {self.raw}; give the folder that holds the raw files")
        items = self.items()
        by_split = {name: [item for item in items if item.split == name] for name in SPLITS}
        if not items:
            why = ", ".join(f"{reason}: {count}" for reason, count in self.report.dropped.items())
            raise UserError(f"no usable row in {self.raw} ({self.report.rows} rows; {why or 'the table is empty'})")
        return {name: self._generate_examples(rows) for name, rows in by_split.items() if rows}

    def _generate_examples(self, items: Sequence[Item]) -> Iterator[tuple[int, dict[str, Any]]]:
        with ThreadPoolExecutor(self.workers) as pool:
            for number, (item, result) in enumerate(_in_order(pool, self._example, items, ahead=2 * self.workers)):
                if isinstance(result, ImageError):
                    self.report.reject(item, str(result))
                    continue
                self.report.records[item.split] += 1
                if item.patient:
                    self.report.patients[item.split].add(result["patient"])
                yield number, result

    def _example(self, item: Item) -> dict[str, Any] | ImageError:
        try:
            image = read_image(item.image)
            geometry = Geometry(image.shape[0], image.shape[1], self.image_size)
            findings = [self._finding(finding, geometry) for finding in item.findings]
        except ImageError as error:
            return error
        return {
            "id": item.id,
            "image": geometry.to_square(image).tobytes(),
            "image_size": self.image_size,
            "original_height": geometry.height,
            "original_width": geometry.width,
            "patient": pseudonym(item.patient, self.seed),
            "view": item.view,
            "sentences": item.sentences,
            "impression_count": item.impression_count,
            "findings": findings,
        }

    def _finding(self, finding: MaskedFinding, geometry: Geometry) -> dict[str, Any]:
        united = None
        for path in finding.masks:
            mask = read_mask(path)
            if mask.shape != (geometry.height, geometry.width):
                raise ImageError(
                    f"{path.name}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                    f"{geometry.width} x {geometry.height}"
                )
            united = mask if united is None else united | mask
        if united is None or not united.any():
            raise ImageError(f"{', '.join(path.name for path in finding.masks)}: the mask is empty")
        return {
            "label": finding.label,
            "prompt": finding.prompt,
            "mask": encode_png(geometry.mask_to_square(united)),
        }


def _in_order(
    pool: Executor, function: Callable[[Item], Any], items: Sequence[Item], ahead: int
) -> Iterator[tuple[Item, Any]]:
    """Results of `function` in the order of the items, never more than `ahead` of them waiting in memory."""
    rest = iter(items)
    waiting: list[tuple[Item, Future]] = [(item, pool.submit(function, item)) for item in islice(rest, ahead)]
    try:
        while waiting:
            item, future = waiting.pop(0)
            result = future.result()
            for following in islice(rest, 1):
                waiting.append((following, pool.submit(function, following)))
            yield item, result
    finally:
        for _, future in waiting:
            future.cancel()


class _Groups:
    """Disjoint sets (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def find(self, key: Any) -> Any:
        self._parent.setdefault(key, key)
        while self._parent[key] != key:
            self._parent[key] = key = self._parent[self._parent[key]]
        return key

    def join(self, first: Any, second: Any) -> None:
        self._parent[self.find(first)] = self.find(second)


def _content_hashes(paths: Sequence[Path], workers: int, everything: bool) -> dict[Path, str]:
    """SHA-256 of files, in threads. Unless `everything` is asked for, only of those another file equals in size."""
    sizes = {path: path.stat().st_size for path in dict.fromkeys(paths) if path.is_file()}
    shared = Counter(sizes.values())
    wanted = [path for path, size in sizes.items() if everything or shared[size] > 1]

    def digest(path: Path) -> str:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""  # unreadable: reported when its image is decoded

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return {path: value for path, value in zip(wanted, pool.map(digest, wanted), strict=True) if value}


def _refuse_leaks(items: Sequence[Item], key: Callable[[Item], str], what: str, shown: Callable[[str], str]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.split and key(item):
            splits[key(item)].add(item.split)
    leaking = {name: found for name, found in splits.items() if len(found) > 1}
    if leaking:
        examples = "; ".join(
            f"{shown(name)} in {' and '.join(sorted(found))}"
            for name, found in list(leaking.items())[:_LISTED_IN_ERRORS]
        )
        raise UserError(
            f"build stopped: {len(leaking)} {what}{'s' if len(leaking) > 1 else ''} on both sides of a split "
            f"({what} by pseudonym: {examples}); put all rows of one {what.split()[0]} into one split"
        )


def _hashed_split(key: str, fractions: Mapping[str, float]) -> str:
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    total = 0.0
    for name, fraction in fractions.items():
        total += fraction
        if position < total:
            return name
    return [name for name, fraction in fractions.items() if fraction > 0][-1]
