"""The base class of builders that read folders: it makes records from items in parallel and keeps an account."""

import abc
import os
import secrets
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tensorflow_datasets as tfds

from afloc_jax import files, tables
from afloc_jax.errors import UsageError, UserError
from afloc_jax.tables import Row
from data_pipelines.building import beam, shards
from data_pipelines.building.account import Account
from data_pipelines.building.arguments import check_choices
from data_pipelines.building.decode import Decoding, example, shown
from data_pipelines.building.exclusion import exclusion_lists, patients_of
from data_pipelines.building.items import SPLITS, Item
from data_pipelines.building.pseudonyms import pseudonym, read_key
from data_pipelines.constants import IMAGE_SIZE, Equalization, GreyRule
from data_pipelines.records import record_features

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class FolderBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):  # type: ignore[call-arg]
    """The base class of builders that read a folder. Subclasses yield items; this class makes records from them.

    Args:
        raw: the folder of raw files. It must be local, because data sets are searched recursively and read in parts,
            which `afloc_jax.files.Path` does not support.
        image_size: the side of the stored square in pixels.
        grey: how files become grey, see `images.read_image`.
        equalize: histogram equalisation of whole images, see `images.equalized`.
        seed: the seed of splits.
        max_bad_fraction: the share of unusable images above which the build stops.
        workers: threads that decode images (decoders release the interpreter lock); 0 for one per CPU.
        journal: the folder of finished shards, from which an interrupted build continues; None starts a new build.
        beam: whether to build with Apache Beam, on the runner of the download configuration.
        exclude: files that list patients to leave out, see `exclusion.read_patients`.
        pseudonym_key: the file of the key of pseudonyms; empty for a key that is used once.

    An unusable image is reported and left out.
    """

    VERSION = tfds.core.Version("1.4.0")  # part of the name of a prepared folder: increase it when records change
    FOLDERS: ClassVar[tuple[str, ...]] = ()  # arguments that name another folder of images than the raw folder

    def __init__(
        self,
        *,
        raw: str | Path,
        image_size: int = IMAGE_SIZE,
        grey: GreyRule = "luma",
        equalize: Equalization = "none",
        seed: int = 0,
        max_bad_fraction: float = 0.05,
        workers: int = 0,
        journal: str | Path | None = None,
        beam: bool = False,
        exclude: Iterable[str] = (),
        pseudonym_key: str | Path = "",
        **kwargs: Any,
    ):
        self.raw, self.image_size, self.seed = Path(raw), int(image_size), int(seed)
        self.grey, self.equalize = grey, equalize
        self.workers = int(workers) if workers > 0 else os.cpu_count() or 1
        self.journal, self.beam = files.Path(journal) if journal else None, bool(beam)
        if not 16 <= self.image_size <= 4096:
            raise UsageError(f"image_size is {image_size}, must lie between 16 and 4096 pixels")
        self.exclude = exclusion_lists([exclude] if isinstance(exclude, str) else list(exclude))
        self._key = read_key(pseudonym_key) if pseudonym_key else secrets.token_bytes(32)
        self.account = Account(max_bad_fraction)
        self._faults: list[tables.Fault] = []
        self._incomplete: dict[str, tables.Fault] = {}  # by image: one of its rows cannot be used
        check_choices(self)
        super().__init__(**{"file_format": "array_record", **kwargs})

    @abc.abstractmethod
    def items(self) -> list[Item]:
        """All usable rows of the raw folder with their splits. Dropped rows are counted in `self.account`."""

    def read_table(
        self,
        path: Path,
        required: Sequence[str],
        purpose: str,
        *,
        unique: Collection[str] = (),
        names: Collection[str] = (),
        known: Collection[str] = (),
        of_images: str = "",
    ) -> Sequence[Row]:
        """The usable rows of a table, see `tables.read_table`. Rows with a fault are rejected.

        A row about one of several findings has the id of its image in the column `of_images`. An image with a faulty
        row is rejected as well: the other rows are not all that it shows.

        Raises UserError for a missing or doubtful file, and for one without a row.
        """
        if not path.is_file():
            raise UserError(f"no table {path.name} in {path.parent}: {purpose}")
        table = tables.read_table(path, required, purpose, unique=unique, names=names, known=known)
        if not (table.rows or table.faults):
            raise UserError(f"{path} has a header but no row")
        self._faults += table.faults
        for fault in table.faults if of_images else ():
            if fault.row is not None:
                self._incomplete.setdefault(fault.row.get(of_images, ""), fault)
        return table.rows

    def _reject_rows(self) -> None:
        """Rejects the rows with a fault that tables had."""
        self.account.rows += len(self._faults)
        for fault in self._faults:
            self.account.reject(fault.place, fault.reason, str(fault), fault.place)
        self._faults = []

    def not_excluded(self, items: list[Item]) -> list[Item]:
        """The items without the patients of the lists in `exclude`. They are counted, and how many of the lists' are
        in the tables is noted: none if the lists write patients in another way.

        Raises UsageError if no item names a patient.
        """
        if not self.exclude:
            return items
        excluded, there = patients_of(self.exclude), {item.patient for item in items} - {""}
        if not there:
            raise UsageError("--exclude: this data set does not name patients, so none can be left out")
        kept = [item for item in items if item.patient not in excluded]
        self.account.dropped.update({"patient of an exclusion list": len(items) - len(kept)} if kept != items else {})
        found = len(excluded & there)
        self.account.notes.append(f"exclude: {found:,} of {len(excluded):,} patients of the lists are in the tables")
        return kept

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=record_features(), disable_shuffling=True)

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        """Writes the shards. TFDS calls it, and keeps the result only if it returns."""
        if self.beam:
            super()._download_and_prepare(dl_manager, download_config)
            self._count_beam_records()
            return
        by_split = self._items_by_split()
        with ThreadPoolExecutor(self.workers) as pool:

            def examples(items: Sequence[Item]) -> Generator[shards.Result]:
                make = partial(example, how=self._decoding)
                return in_order(pool, make, items, ahead=2 * self.workers)

            shards.write(self, by_split, examples, self.account, self.journal)

    def _items_by_split(self) -> dict[str, list[Item]]:
        if not self.raw.is_dir():
            raise UserError(f"no folder {self.raw}; give the folder that holds the raw files")
        items = self.items()
        self._reject_rows()
        for number, item in enumerate(items, start=1):
            item.place = item.place or f"image {number:,}"
            if fault := self._incomplete.get(item.id):
                item.reject(fault)
            # Here, so that what Beam's workers read and write names no patient either, and needs no key.
            item.patient, item.study = pseudonym(item.patient, self._key), pseudonym(item.study, self._key)
        by_split = {name: [item for item in items if item.split == name] for name in SPLITS}
        if not items:
            why = ", ".join(f"{reason}: {count}" for reason, count in self.account.dropped.items())
            raise UserError(f"no usable row in {self.raw} ({self.account.rows} rows; {why or 'the table is empty'})")
        return {name: rows for name, rows in by_split.items() if rows}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, beam.Collection]:
        del dl_manager  # nothing is downloaded
        self._by_split = self._items_by_split()
        return {split: self._generate_examples(split, items) for split, items in self._by_split.items()}

    def _generate_examples(self, split: str, items: Sequence[Item]) -> beam.Collection:
        """The Beam collection of a split's records."""
        return beam.collection(items, self._decoding, self._beam_files / split)

    @property
    def _decoding(self) -> Decoding:
        return Decoding(self.image_size, self.grey, self.equalize)

    @property
    def _beam_files(self) -> files.Path:
        """The temporary folder that the workers of a Beam build read and write."""
        return files.Path(self.data_dir) / "beam"

    def _count_beam_records(self) -> None:
        """Fills the account of a Beam build, which equals that of a build with threads."""
        for split, items in self._by_split.items():
            rejected = dict(beam.read_rejected(self._beam_files / split))
            for item in items:
                if (reason := rejected.get(item.id)) is not None:
                    self.account.reject(item.id, reason, shown(item, reason), item.place)
            self.account.flat.update(beam.read_flat(self._beam_files / split))
            self.account.black.update(beam.read_black(self._beam_files / split))
            self.account.boxes_outside.update(beam.read_outside(self._beam_files / split))
            kept = [item for item in items if item.id not in rejected]
            self.account.add(split, len(kept), {item.patient for item in kept} - {""})
        self._beam_files.rmtree(missing_ok=True)


def in_order(
    pool: Executor, function: Callable[[_Task], _Result], tasks: Sequence[_Task], ahead: int
) -> Generator[tuple[_Task, _Result]]:
    """Tasks with their results, in the order of the tasks. At most `ahead` results are kept in memory."""
    rest = iter(tasks)
    waiting: list[tuple[_Task, Future[_Result]]] = [(task, pool.submit(function, task)) for task in islice(rest, ahead)]
    try:
        while waiting:
            task, future = waiting.pop(0)
            result = future.result()
            for following in islice(rest, 1):
                waiting.append((following, pool.submit(function, following)))
            yield task, result
    finally:
        for _, future in waiting:
            future.cancel()
