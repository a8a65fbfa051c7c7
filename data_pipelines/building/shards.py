"""Records to ArrayRecord shards, one after another, so that an interrupted build goes on and memory stays flat.

TFDS's own writer gathers a whole split (a gigabyte in memory, the rest in buckets on disk) before it writes the first
shard; nothing of it survives a kill. Here a shard is written as its records come, and gets its name in the journal only
when it is complete, together with an account of what it holds. The result is what TFDS reads.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import naming
from tqdm import tqdm

from data_pipelines.building.decode import rejection
from data_pipelines.building.items import BuildReport, Item
from data_pipelines.images import ImageError

_SMALLEST = 256  # records a shard: what an interruption costs at most is the work on one shard
_MOST_SHARDS = 256  # per split; each is an open file while it is read

# Records one by one, lightly compressed: they are read in half the time of zstd's third level, TFDS's choice, and an
# eighth larger.
_WRITER = "group_size:1,zstd:-5"

Examples = Callable[[Sequence[Item]], Iterator[tuple[Item, Any]]]


def write(
    builder: Any, by_split: Mapping[str, Sequence[Item]], examples: Examples, report: BuildReport, journal: Path
) -> list[Any]:
    """Writes all splits of a builder into its `data_dir`, taking finished shards of an earlier run from `journal`.

    Args:
        builder: the TFDS builder; gives features, file format and file names.
        by_split: split -> items in the order of the records.
        examples: items -> (item, record or ImageError) in the same order; where the work is done.
        report: counts records and rejected images, those of earlier runs included.
        journal: folder of finished shards.

    Returns:
        One tfds SplitInfo per split that has records.
    """
    journal.mkdir(parents=True, exist_ok=True)
    parts = [
        _Part(split, journal / f"{split}-{number:05d}", chunk)
        for split, items in by_split.items()
        for number, chunk in enumerate(_chunks(items))
    ]
    done = sum(len(part.items) for part in parts if part.account is not None)
    bar = {"desc": f"prepare {builder.name}", "unit": " images", "disable": None, "smoothing": 0.05}
    with tqdm(total=sum(len(part.items) for part in parts), initial=done, **bar) as progress:
        for part in parts:
            if part.account is None:
                _write(builder, part, examples, report, progress)
            else:
                for image, reason in part.account["rejected"]:
                    report.reject(image, reason)
            assert part.account is not None
            report.add(part.split, part.account["records"], part.account["patients"])
    published = []
    for split in by_split:
        kept = [part for part in parts if part.split == split and part.account and part.account["records"]]
        published += [_publish(builder, split, kept)] if kept else []
    return published


class _Part:
    """The items of one shard, where it is, and its account if it is complete."""

    def __init__(self, split: str, path: Path, items: Sequence[Item]):
        self.split, self.path, self.items = split, path, items
        self.key = hashlib.sha256("\n".join(item.id for item in items).encode()).hexdigest()
        self.account = self._read()

    @property
    def account_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _read(self) -> dict[str, Any] | None:
        try:
            account = json.loads(self.account_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return account if self.path.is_file() and account.get("key") == self.key else None


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    size = max(_SMALLEST, math.ceil(len(items) / _MOST_SHARDS))
    return (items[start : start + size] for start in range(0, len(items), size))


def _write(builder: Any, part: _Part, examples: Examples, report: BuildReport, progress: Any) -> None:
    """Makes one shard and its account."""
    account: dict[str, Any] = {"key": part.key, "records": 0, "bytes": 0, "rejected": [], "patients": []}
    patients: set[str] = set()

    def serialized() -> Iterator[bytes]:
        for item, result in examples(part.items):
            progress.update(1)
            if isinstance(result, ImageError):
                reason = rejection(item, result)
                account["rejected"].append([item.id, reason])
                report.reject(item.id, reason)
                continue
            data = builder.info.features.serialize_example(result)
            account["records"] += 1
            account["bytes"] += len(data)
            patients.update({result["patient"]} - {""})
            yield data

    temporary = part.path.with_suffix(".writing")
    writer = ArrayRecordWriter(str(temporary), _WRITER)
    for data in serialized():
        writer.write(data)
    writer.close()
    os.replace(temporary, part.path)
    account["patients"] = sorted(patients)
    temporary.write_text(json.dumps(account), encoding="utf-8")
    os.replace(temporary, part.account_path)
    part.account = account


def _publish(builder: Any, split: str, parts: Sequence[_Part]) -> Any:
    """Moves the shards of a split to where TFDS looks for them."""
    template = naming.ShardedFileTemplate(
        data_dir=builder.data_path,
        dataset_name=builder.name,
        split=split,
        filetype_suffix=builder.info.file_format.file_suffix,
    )
    accounts = []
    for number, part in enumerate(parts):
        os.replace(part.path, template.sharded_filepath(shard_index=number, num_shards=len(parts)))
        accounts.append(part.account or {})
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[account["records"] for account in accounts],
        num_bytes=sum(account["bytes"] for account in accounts),
        filename_template=template,
    )
