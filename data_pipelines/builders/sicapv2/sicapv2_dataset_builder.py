"""SICAPv2: prostate tissue with Gleason grades of patches. See docs/datasets/sicapv2.md."""

from collections.abc import Iterator

from afloc_jax.errors import UserError
from data_pipelines.builders.items import Item
from data_pipelines.builders.published import PublishedBuilder
from data_pipelines.builders.tables import Files, read_workbook

CLASSES = {"NC": "non-cancerous", "G3": "gleason grade 3", "G4": "gleason grade 4", "G5": "gleason grade 5"}
_TABLES = {"train": "partition/Test/Train.xlsx", "test": "partition/Test/Test.xlsx"}


class Builder(PublishedBuilder):
    """Patches of the official training and test parts with their labels. Arguments: see PublishedBuilder.

    The masks are not read: what their values mean could not be checked.
    """

    FILES = (
        Files(_TABLES["train"], "labels", 1),
        Files(_TABLES["test"], "labels", 1),
        Files("images/*.jpg", "patches"),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def cases(self) -> Iterator[Item]:
        """One item per row. A slide (the name up to "_Block") stands for a patient."""
        for split, table in _TABLES.items():
            for number, row in enumerate(read_workbook(self.raw / table, ("image_name", *CLASSES)), start=2):
                name = row["image_name"]
                item = Item(name, self.raw / "images" / name, name.partition("_Block")[0], split=split)
                try:
                    item.labels = {title: int(float(row[column])) for column, title in CLASSES.items()}
                except ValueError:
                    raise UserError(f"{table}, row {number}: a label is not 0 or 1; fetch the table again") from None
                yield item
