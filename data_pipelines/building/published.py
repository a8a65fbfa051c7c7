"""The base class of builders for published data sets, in the form in which they are downloaded.

Such a builder is one short module: `FILES` declares the files of the download, and `cases` yields its images. This
module and `ingest` handle file checks, missing images, splits, leaks, decoding, resuming and the account.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from afloc_jax.tables import fault_of_name
from data_pipelines.building.decode import shown
from data_pipelines.building.expected_files import Files, IncompleteDataError, check_files, incomplete
from data_pipelines.building.ingest import FolderBuilder
from data_pipelines.building.items import Item
from data_pipelines.building.splits import assign_splits, check_fractions
from data_pipelines.constants import CLASS_PROMPT
from data_pipelines.reports import clean_sections


class PublishedBuilder(FolderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The base class of builders of published data sets.

    Args:
        partial: whether to accept a part of the data set. Numbers of files and rows are then not checked, and images
            that are missing, or lack a file that belongs to them, are dropped and counted.
        fractions: the share of patients in each split, for images without an official split.
        leaks: the action where the official splits put a patient or an image into two splits: "stop", or "drop" the
            rows of the training side.
        prompt: the prompt of a class; "{finding}" is replaced by its name in lower case.
        compatible: whether to clean reports as the published release does.
        raw, image_size, seed, max_bad_fraction, workers, journal, beam, exclude: see FolderBuilder.
    """

    FILES: ClassVar[tuple[Files, ...]] = ()
    FRACTIONS: ClassVar[Mapping[str, float]] = {"test": 1.0}

    def __init__(
        self,
        *,
        partial: bool = False,
        leaks: Literal["stop", "drop"] = "stop",
        fractions: Mapping[str, float] | None = None,
        prompt: str = CLASS_PROMPT,
        compatible: bool = False,
        **kwargs: Any,
    ):
        self.leaks, self.partial, self.prompt, self.compatible = leaks, bool(partial), prompt, bool(compatible)
        self.fractions = check_fractions(fractions or self.FRACTIONS)
        super().__init__(**kwargs)

    @abc.abstractmethod
    def cases(self) -> Iterator[Item]:
        """The images of the raw folder. Images that are filtered out are counted by `drop`."""

    def unnamed(self, cases: Sequence[Item]) -> list[Item]:
        """Further images of the raw folder, which the tables do not name because they show no finding."""
        del cases
        return []

    def files(self) -> Sequence[Files]:
        """The files that the raw folder must hold."""
        return self.FILES

    def items(self) -> list[Item]:
        """The cases with their splits, after a check of all files. Identical images are put into one split."""
        self._lacking: dict[str, None] = {}  # missing files that belong to images, in their order
        self._counts = check_files(self.raw, self.files(), self.partial)
        items = list(self.cases())
        self.account.rows += len(items)
        unnamed = self.unnamed(items)
        self.account.rows += len(unnamed)
        for number, item in enumerate(items, start=1):
            item.place = item.place or f"image {number:,}"
            item.fault = item.fault or fault_of_name(item.id)
            if item.fault:
                self.account.reject(item.id, item.fault, shown(item, item.fault), item.place)
        items = self.not_excluded([*self._present([item for item in items if not item.fault]), *unnamed])
        without_patient = any(not item.patient for item in items)
        drop = self.leaks == "drop"
        kept = assign_splits(items, self.fractions, self.seed, self.workers, without_patient, drop)
        self.account.dropped.update({"also in an evaluation split": len(items) - len(kept)} if kept != items else {})
        first: dict[str, Item] = {}
        for item in kept:
            if first.setdefault(item.id, item) is not item:
                reason = f"{item.place}: the same image as {first[item.id].place}"
                self.account.reject(item.id, reason, reason, item.place)
        return list(first.values())

    def lack(self, path: Path | str, reason: str) -> None:
        """Notes a missing file of an image. The build stops and names it, or counts it with `partial`."""
        if self.partial:
            self.drop(reason)
        else:
            self._lacking[str(_below(path, self.raw))] = None

    def check_count(self, name: str, count: int, expected: int, what: str) -> None:
        """Notes a number that differs from the published one, where no pattern of `FILES` can count."""
        if count != expected and not self.partial:
            self._counts.append(f"{name}: {count:,} {what}, the data set has {expected:,}")

    def drop(self, reason: str) -> None:
        """Counts an image that is left out on purpose."""
        self.account.rows += 1
        self.account.dropped[reason] += 1

    def prompt_for(self, finding: str) -> str:
        """The prompt of a class."""
        return self.prompt.replace("{finding}", finding.lower())

    def set_report(self, item: Item, findings: str, impression: str = "") -> None:
        """Sets the sentences of an item, cleaned from the two sections that describe the image."""
        report = clean_sections(findings, impression, self.compatible)
        item.sentences, item.impression_count = report.sentences, report.impression_count

    def _present(self, items: list[Item]) -> list[Item]:
        """The items whose image exists. Raises IncompleteDataError if files are missing, unless `partial`."""
        missing = [item for item in items if not item.image.is_file()]
        names = [] if self.partial else [str(_below(item.image, self.raw)) for item in missing]
        lacks = [f"{len(names):,} of {len(items):,} images that its tables name"] if names else []
        if self._lacking:
            lacks.append(f"{len(self._lacking):,} of the files that belong to its images")
        if lacks:
            what = "; and ".join([*lacks, *self._counts])
            hint = "fetch them, or pass --builder partial=true to build what is there"
            lacking = [*names, *self._lacking, *self._counts]
            raise IncompleteDataError(f"{self.raw} lacks {what}; {hint}", lacking)
        if self._counts:
            raise incomplete(self.raw, self._counts)
        self.account.dropped.update({"image not there": len(missing)} if missing else {})
        return [item for item in items if item.image.is_file()] if missing else items


def _below(path: Path | str, raw: Path) -> Path:
    path = Path(path)
    return path.relative_to(raw) if path.is_relative_to(raw) else path
