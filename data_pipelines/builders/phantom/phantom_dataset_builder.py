"""The TFDS data set of procedural chest radiographs. The same seed gives the same records."""

import logging
import multiprocessing
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from afloc_jax import files
from afloc_jax.errors import UsageError, UserError
from data_pipelines.builders.phantom.generate import SPLITS
from data_pipelines.builders.phantom.worker import name_of, records
from data_pipelines.building import shards
from data_pipelines.building.account import Account
from data_pipelines.building.ingest import in_order
from data_pipelines.building.items import Item
from data_pipelines.constants import IMAGE_SIZE
from data_pipelines.records import Record, record_features

_CHUNK = 25  # phantoms per task: few enough for a smooth progress bar, enough to hide the overhead of a task
_AHEAD = 4  # waiting tasks per worker, which bounds the memory of finished records
_WORTH_A_POOL = 200  # phantoms; fewer are drawn faster than worker processes start

_DESCRIPTION = """Procedural frontal chest radiographs (224 x 224) with reports and exact masks of eight kinds of
finding: pleural effusion, pneumothorax, consolidation, nodule, cardiomegaly, atelectasis, edema and device."""


class Builder(FileReaderBuilder):
    """The built-in data set.

    Args:
        train, validation, test: the number of phantoms in each split; 0 leaves the split out.
        seed: the seed of the data set; phantom `index` of a split is `generate(seed, split, index, named, varied)`.
        named: the share of findings that reports also name alone, without side, zone and size. Images, masks and
            prompts do not depend on it.
        varied: whether chests, exposure, processing and field differ far more widely, with opacities of pneumonia: for
            networks that are to read radiographs afterwards. Other phantoms than those without it.
        image_size: 224, the only supported size.
        workers: processes that draw; None for one per CPU.
        journal: the folder of finished shards, from which an interrupted build continues; None starts a new build.

    Raises UsageError for invalid sizes, UserError if `data_dir` holds phantoms of other arguments.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First release.", "1.1.0": "Fields for labels, boxes and sections."}  # noqa: RUF012 (TFDS wants a class attribute)

    def __init__(
        self,
        *,
        train: int = 5000,
        validation: int = 300,
        test: int = 300,
        seed: int = 0,
        named: float = 0.0,
        varied: bool | int = False,
        image_size: int = IMAGE_SIZE,
        workers: int | None = None,
        journal: str | Path | None = None,
        **kwargs: Any,
    ):
        self.sizes = {"train": int(train), "validation": int(validation), "test": int(test)}
        self.seed = int(seed)
        self.named = float(named)
        self.varied = bool(varied)
        self.workers = int(workers) if workers is not None else os.cpu_count() or 1
        for name, value in {**self.sizes, "seed": self.seed}.items():
            if value < 0:
                raise UsageError(f"phantom: {name} is {value}, must not be negative")
        if not any(self.sizes.values()):
            raise UsageError("phantom: train, validation and test are all 0; give at least one split a size")
        if varied not in (0, 1):
            raise UsageError(f"phantom: varied is {varied}, must be True or False")
        if not 0 <= self.named <= 1:
            raise UsageError(f"phantom: named is {self.named}, must be a share, from 0 to 1")
        if image_size != IMAGE_SIZE:
            raise UsageError(f"phantom: image_size is {image_size}, but phantoms are drawn at {IMAGE_SIZE} only")
        self.journal = files.Path(journal) if journal else None
        if self.workers < 1:
            raise UsageError(f"phantom: workers is {self.workers}, must be at least 1")
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)
        made = dict(self.info.metadata or {})  # arguments of the prepared records, if there are any
        if made != self._arguments():
            raise UserError(
                f"{self.data_dir} holds phantoms made with {_listed(made)}, not with {_listed(self._arguments())}; "
                "use the same arguments, another directory, or remove that folder"
            )

    def _arguments(self) -> dict[str, float]:
        arguments: dict[str, float] = {**self.sizes, "seed": self.seed}
        arguments |= {"named": self.named} if self.named else {}  # older folders do not state it
        return arguments | ({"varied": int(self.varied)} if self.varied else {})

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=record_features(),
            metadata=tfds.core.MetadataDict(self._arguments()),
            disable_shuffling=True,  # phantoms are independent of each other; keys stay 0, 1, 2, ...
        )

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        """Draws the phantoms and writes their shards. TFDS calls it, and keeps the result only if it returns."""
        del dl_manager, download_config  # nothing is downloaded
        shards.write(self, {name: self._items(name) for name in SPLITS}, self._drawn, Account(), self.journal)

    def _items(self, split: str) -> list["_Drawing"]:
        names = [name_of(self.seed, split, self.varied, number) for number in range(self.sizes[split])]
        return [_Drawing(name, Path(), split=split, number=number) for number, name in enumerate(names)]

    def _drawn(self, items: Sequence["_Drawing"]) -> Generator[tuple[Item, Record]]:
        """Items with their records, in order. They are drawn by worker processes if that is worth it."""
        draw, done = partial(records, self.seed, self.named, self.varied), 0
        phantoms = [(item.split, item.number) for item in items]
        if self.workers > 1 and len(items) >= _WORTH_A_POOL:
            tasks = [phantoms[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
            # spawn, because a fork of a process with threads of JAX or OpenCV can hang
            context = multiprocessing.get_context("spawn")
            try:
                with ProcessPoolExecutor(self.workers, context, cv2.setNumThreads, (1,)) as pool:  # a process per CPU
                    for task, made in in_order(pool, draw, tasks, _AHEAD * self.workers):
                        yield from zip(items[done : done + len(task)], made, strict=True)
                        done += len(task)
            except BrokenProcessPool:  # e.g. a script without the usual `if __name__ == "__main__":`
                logging.warning("phantom: worker processes cannot start here; drawing in this process")
        for item, phantom in zip(items[done:], phantoms[done:], strict=True):
            yield item, draw([phantom])[0]


@dataclass
class _Drawing(Item):
    """A phantom that is to be drawn."""

    number: int = 0  # within its split


def _listed(arguments: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items()) or "unknown arguments"
