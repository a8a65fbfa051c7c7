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
from tensorflow_datasets.core import file_adapters, naming
from tqdm import tqdm

from data_pipelines.builders.items import BuildReport, Item
from data_pipelines.images import ImageError

_SMALLEST = 256  # records a shard: what an interruption costs at most is the work on one shard
_MOST_SHARDS = 256  # per split; each is an open file while it is read

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
    total = sum(len(items) for items in by_split.values())
    infos = []
    with tqdm(total=total, desc=f"prepare {builder.name}", unit=" images", disable=None, smoothing=0.05) as progress:
        for split, items in by_split.items():
            size = max(_SMALLEST, math.ceil(len(items) / _MOST_SHARDS))
            parts = [items[start : start + size] for start in range(0, len(items), size)]
            done = [
                _shard(builder, journal / f"{split}-{number:05d}", part, split, examples, report, progress)
                for number, part in enumerate(parts)
            ]
            kept = [(path, account) for path, account in done if account["records"]]
            for path, _ in done:
                if not any(path == other for other, _ in kept):
                    path.unlink()
            if kept:
                infos.append(_publish(builder, split, kept))
    return infos


def _shard(
    builder: Any, path: Path, items: Sequence[Item], split: str, examples: Examples, report: BuildReport, progress: Any
) -> tuple[Path, dict[str, Any]]:
    """One complete shard and its account, written now or found."""
    key = hashlib.sha256("\n".join(item.id for item in items).encode()).hexdigest()
    found = _finished(path, key)
    if found is not None:
        for image, reason in found["rejected"]:
            report.reject(image, reason)
        report.add(split, found["records"], found["patients"])
        progress.initial += len(items)  # counts as done, but not for the rate
        progress.update(len(items))
        return path, found
    account: dict[str, Any] = {"key": key, "records": 0, "bytes": 0, "rejected": [], "patients": []}
    patients: set[str] = set()

    def serialized() -> Iterator[tuple[int, bytes]]:
        for number, (item, result) in enumerate(examples(items)):
            progress.update(1)
            if isinstance(result, ImageError):
                account["rejected"].append([item.image.name, str(result)])
                report.reject(item.image.name, str(result))
                continue
            data = builder.info.features.serialize_example(result)
            account["records"] += 1
            account["bytes"] += len(data)
            patients.update({result["patient"]} - {""})
            yield number, data

    temporary = path.with_suffix(".writing")
    file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD].write_examples(temporary, serialized())
    account["patients"] = sorted(patients)
    report.add(split, account["records"], account["patients"])
    os.replace(temporary, path)
    account_file = path.with_suffix(".json")
    account_file.with_suffix(".json.writing").write_text(json.dumps(account), encoding="utf-8")
    os.replace(account_file.with_suffix(".json.writing"), account_file)
    return path, account


def _finished(path: Path, key: str) -> dict[str, Any] | None:
    """The account of a complete shard of exactly these items, if there is one."""
    try:
        account = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return account if path.is_file() and account.get("key") == key else None


def _publish(builder: Any, split: str, shards: Sequence[tuple[Path, dict[str, Any]]]) -> Any:
    """Moves the shards of a split to where TFDS looks for them."""
    template = naming.ShardedFileTemplate(
        data_dir=builder.data_path,
        dataset_name=builder.name,
        split=split,
        filetype_suffix=builder.info.file_format.file_suffix,
    )
    for number, (path, _) in enumerate(shards):
        os.replace(path, template.sharded_filepath(shard_index=number, num_shards=len(shards)))
        path.with_suffix(".json").unlink()
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[account["records"] for _, account in shards],
        num_bytes=sum(account["bytes"] for _, account in shards),
        filename_template=template,
    )
