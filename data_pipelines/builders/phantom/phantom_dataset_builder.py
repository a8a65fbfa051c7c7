"""The TFDS data set of procedural chest radiographs. The same seed gives the same records."""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import cv2
import tensorflow_datasets as tfds

from afloc_jax.errors import UsageError, UserError
from data_pipelines.builders.phantom.generate import SPLITS
from data_pipelines.builders.phantom.worker import records
from data_pipelines.building.ingest import in_order
from data_pipelines.constants import IMAGE_SIZE
from data_pipelines.records import Encoded, record_features

_CHUNK = 25  # phantoms per task: few enough for a smooth progress bar, enough to hide the overhead of a task
_AHEAD = 4  # waiting tasks per worker, which bounds the memory of finished records
_WORTH_A_POOL = 200  # phantoms; fewer are drawn faster than worker processes start

_DESCRIPTION = """Procedural frontal chest radiographs (224 x 224) with reports and exact masks of eight kinds of
finding: pleural effusion, pneumothorax, consolidation, nodule, cardiomegaly, atelectasis, edema and device."""


class Builder(tfds.core.GeneratorBasedBuilder):
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

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        pool = None  # shared by the splits; its processes end with the last generator
        if self.workers > 1 and sum(self.sizes.values()) >= _WORTH_A_POOL:
            # spawn, because a fork of a process with threads of JAX or OpenCV can hang
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(self.workers, context, cv2.setNumThreads, (1,))  # a process per CPU
        return {name: self._generate_examples(name, pool) for name in SPLITS if self.sizes[name]}

    def _generate_examples(self, split: str, pool: ProcessPoolExecutor | None) -> Iterator[tuple[int, Encoded]]:
        size, done, draw = self.sizes[split], 0, partial(records, self.seed, split, self.named, self.varied)
        chunks = [range(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
        try:
            for numbers, made in in_order(pool, draw, chunks, _AHEAD * self.workers) if pool else ():
                yield from zip(numbers, made, strict=True)
                done = numbers.stop
        except BrokenProcessPool:  # e.g. a script without the usual `if __name__ == "__main__":`
            logging.warning("phantom: worker processes cannot start here; drawing in this process")
        for number in range(done, size):
            yield number, draw([number])[0]


def _listed(arguments: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items()) or "unknown arguments"
