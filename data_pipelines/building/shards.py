"""Writing of records to ArrayRecord shards, one after another, so that an interrupted build can continue.

TFDS's own writer collects a whole split (a gigabyte in memory, the rest on disk) before it writes the first shard, and
loses it all when it is killed. Here a shard is written while its records are made. It gets its name in the journal only
when it is complete, with a file on its content. TFDS can read the result.
"""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import naming
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.files import Path, read_json, write_whole
from data_pipelines.building.account import Account
from data_pipelines.building.decode import boxes_outside, only_grey, rejection, shown
from data_pipelines.building.items import Item
from data_pipelines.images import ImageError
from data_pipelines.records import Record

_SMALLEST = 256  # records of a shard; an interruption loses at most the work on one shard
_MOST_SHARDS = 256  # shards of a split; each is an open file while it is read

# Records are stored one by one with light compression. Compared with zstd's level 3, which TFDS uses, they are read in
# half the time and take an eighth more space.
_WRITER = "group_size:1,zstd:-5"

_Item = TypeVar("_Item", bound=Item)
Result = tuple[Item, Record | ImageError]


def write(
    builder: tfds.core.DatasetBuilder,
    by_split: Mapping[str, Sequence[_Item]],
    examples: Callable[[Sequence[_Item]], Generator[Result]],
    account: Account,
    journal: Path | None,
) -> None:
    """Writes all splits of a builder into its `data_dir`, taking finished shards of an earlier run from `journal`.

    Args:
        builder: the TFDS builder, which defines features, file format and file names. It gets a SplitInfo per split
            that has records.
        by_split: split -> items in the order of the records.
        examples: makes (item, record or ImageError) from items, in the same order. It is called once, with the items
            of all shards that are to be written.
        account: counts records and rejected images, also those of earlier runs.
        journal: the folder of finished shards, which is removed at the end; None starts a new build.
    """
    journal = journal or Path(builder.data_dir) / "shards"
    journal.mkdir(parents=True, exist_ok=True)
    parts = [
        _Part(split, journal / f"{split}-{number:05d}", chunk)
        for split, items in by_split.items()
        for number, chunk in enumerate(_chunks(items))
    ]
    done = sum(len(part.items) for part in parts if part.content is not None)
    bar = {"desc": f"prepare {builder.name}", "unit": " images", "disable": None, "smoothing": 0.05}
    # One stream for all shards: workers need not wait at the end of one for its last record.
    left = [item for part in parts if part.content is None for item in part.items]
    progress = tqdm(total=sum(len(part.items) for part in parts), initial=done, **bar)
    with progress, closing(examples(left)) as results:
        for part in parts:
            if part.content is None:
                part.content = _write(builder, part, islice(results, len(part.items)), account, progress)
            else:
                known = {item.id: item for item in part.items}
                for image, reason in part.content.rejected:
                    account.reject(image, reason, shown(known[image], reason), known[image].place)
            account.add(part.split, part.content.records, part.content.patients)
            account.boxes_outside.update(part.content.boxes_outside)
            account.flat.update(part.content.flat)
            account.black.update(part.content.black)
    published = []
    for split in by_split:
        kept = [(part.path, part.content) for part in parts if part.split == split and part.content]
        kept = [(path, content) for path, content in kept if content.records]
        published += [_publish(builder, split, kept)] if kept else []
    journal.rmtree()
    builder.info.set_splits(tfds.core.SplitDict(published))


@dataclass
class _Content:
    """The content of a finished shard, stored beside it as JSON."""

    key: str  # hash of the items
    records: int = 0
    bytes: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)  # image, reason
    patients: list[str] = field(default_factory=list)  # pseudonyms
    boxes_outside: dict[str, int] = field(default_factory=dict)  # image -> boxes that reach beyond it
    flat: list[str] = field(default_factory=list)  # images of one grey value
    black: list[str] = field(default_factory=list)  # those of them that are black


class _Part(Generic[_Item]):
    """The items of one shard, its path, and its content if it is complete."""

    def __init__(self, split: str, path: Path, items: Sequence[_Item]):
        self.split, self.path, self.items = split, path, items
        names = (f"{item.id}\n{item.patient}\n{item.study}" for item in items)
        self.key = hashlib.sha256("\n".join(names).encode()).hexdigest()
        self.content = self._read()

    def _read(self) -> _Content | None:
        try:
            content = _Content(**read_json(self.path.with_suffix(".json")))
        except (UserError, TypeError):
            return None
        return content if self.path.is_file() and content.key == self.key else None


def _chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    size = max(_SMALLEST, math.ceil(len(items) / _MOST_SHARDS))
    return (items[start : start + size] for start in range(0, len(items), size))


def _write(
    builder: tfds.core.DatasetBuilder, part: _Part[_Item], results: Iterable[Result], account: Account, progress: tqdm
) -> _Content:
    """Writes one shard and the file on its content."""
    content, patients = _Content(part.key), set[str]()
    temporary = part.path.with_suffix(".writing")
    writer = ArrayRecordWriter(str(temporary), _WRITER)
    for item, result in results:
        progress.update(1)
        if isinstance(result, ImageError):
            reason = rejection(item, result)
            content.rejected.append((item.id, reason))
            account.reject(item.id, reason, shown(item, reason), item.place)
            continue
        data = builder.info.features.serialize_example(result.encoded())
        writer.write(data)
        content.records += 1
        content.bytes += len(data)
        patients.update({result.patient} - {""})
        value = only_grey(result)
        content.flat += [item.id] if value is not None else []
        content.black += [item.id] if value == 0 else []
        if outside := boxes_outside(result):
            content.boxes_outside[item.id] = outside
    writer.close()
    temporary.replace(part.path)
    content.patients = sorted(patients)
    write_whole(part.path.with_suffix(".json"), json.dumps(asdict(content)))
    return content


def _publish(
    builder: tfds.core.DatasetBuilder, split: str, parts: Sequence[tuple[Path, _Content]]
) -> tfds.core.SplitInfo:
    """Moves the shards of a split to the paths that TFDS expects."""
    template = naming.ShardedFileTemplate(
        data_dir=builder.data_path,
        dataset_name=builder.name,
        split=split,
        filetype_suffix=builder.info.file_format.file_suffix,
    )
    for number, (path, _) in enumerate(parts):
        path.replace(template.sharded_filepath(shard_index=number, num_shards=len(parts)))
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[content.records for _, content in parts],
        num_bytes=sum(content.bytes for _, content in parts),
        filename_template=template,
    )
