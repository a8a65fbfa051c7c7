"""A user's own folder of images with a CSV of images and texts.

Columns: `image` (path relative to the folder, or to its `images/`), and `text`, or `findings` and/or `impression`.
Optional: `patient`, `split` (train, validation, test), `view`. Further columns are ignored.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipelines.building.arguments import texts
from data_pipelines.building.ingest import FolderBuilder
from data_pipelines.building.items import Item, unique_ids
from data_pipelines.building.splits import assign_splits, split_of
from data_pipelines.images import ImageError
from data_pipelines.reports import CleanReport, clean_sections, sections

_COLUMNS = ("image", "text", "findings", "impression", "patient", "split", "view")
_PURPOSE = "a row needs an image and its text (columns image and text, or image and findings and/or impression)"


class Builder(FolderBuilder):
    """Pairs of an image and a report. The top of this file describes the table.

    Args:
        csv: the table inside the raw folder.
        images: the folder of images inside the raw folder; empty for the raw folder itself.
        fractions: the share of patients in each split, for rows without a split.
        views: views to keep, ignoring case; empty for all.
        min_sentences: rows with fewer cleaned sentences are dropped.
        compatible: whether to clean text as the published release does.
        raw, image_size, seed, max_bad_fraction, workers, journal, beam, exclude: see FolderBuilder.
    """

    def __init__(
        self,
        *,
        csv: str = "pairs.csv",
        images: str = "images",
        fractions: Mapping[str, float] | None = None,
        views: Iterable[str] = (),
        min_sentences: int = 1,
        compatible: bool = False,
        **kwargs: Any,
    ):
        self.csv, self.images = csv, images
        self.fractions = dict(fractions or {"train": 0.8, "validation": 0.1, "test": 0.1})
        self.views = frozenset(view.strip().lower() for view in texts("views", views))
        self.min_sentences, self.compatible = max(1, int(min_sentences)), bool(compatible)
        super().__init__(**kwargs)

    def items(self) -> list[Item]:
        """The rows that pass the filters, with their splits."""
        rows = self.read_table(self.raw / self.csv, ("image",), _PURPOSE, names=("image",), known=_COLUMNS)
        if rows and not {"text", "findings", "impression"} & set(rows[0]):
            self.read_table(self.raw / self.csv, ("image", "text"), _PURPOSE)  # raises an error that names the columns
        self.account.rows = len(rows)
        folder = self.raw / self.images if (self.raw / self.images).is_dir() else self.raw
        items = []
        for row, name in zip(rows, unique_ids(row["image"] for row in rows), strict=True):
            view = row.get("view", "")
            if self.views and view.lower() not in self.views:
                self.account.dropped["view not wanted"] += 1
                continue
            report = self._report(row)
            if len(report.sentences) < self.min_sentences:
                self.account.dropped["too few sentences"] += 1
                continue
            beside = self.raw / row["image"]
            image = beside if row["image"] and beside.is_file() else folder / row["image"]
            item = Item(name, image, row.get("patient", ""), view, place=row.place)
            if not row["image"]:
                item.reject(row.fault("image", "empty"))
            try:
                item.split = split_of(row)
            except ImageError as error:
                item.reject(error)
            item.sentences, item.impression_count = report.sentences, report.impression_count
            items.append(item)
        items = self.not_excluded(items)
        assign_splits(items, self.fractions, self.seed, self.workers)
        return items

    def _report(self, row: Mapping[str, str]) -> CleanReport:
        findings, impression = row.get("findings", ""), row.get("impression", "")
        if not (findings or impression):
            text = row.get("text", "")
            parts = sections(text)
            impression = parts.get("impression", "")
            findings = parts.get("findings", parts.get("findings and impression", ""))
            if not (findings or impression):
                findings = text
        return clean_sections(findings, impression, self.compatible)
