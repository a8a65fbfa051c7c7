"""SICAPv2: prostate tissue with Gleason grades of patches and of their pixels. See docs/datasets/sicapv2.md."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from afloc_jax.tables import fault_of_name
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import labels_of, read_workbook
from data_pipelines.images import ImageError, read_label_image
from data_pipelines.regions import MaskFile

CLASSES = {"NC": "non-cancerous", "G3": "gleason 3", "G4": "gleason 4", "G5": "gleason 5"}
PHRASES = {
    "non-cancerous": "non-cancerous prostate tissue",
    "gleason 3": "prostate cancer of gleason grade 3",
    "gleason 4": "prostate cancer of gleason grade 4",
    "gleason 5": "prostate cancer of gleason grade 5",
}
# There are two releases of the masks: PNG files with the grade itself, and JPEG files with a grey value per grade (100,
# 150, 200), which compression has blurred.
GRADES = {"gleason 3": 3, "gleason 4": 4, "gleason 5": 5}
GREYS = {"gleason 3": range(50, 125), "gleason 4": range(125, 175), "gleason 5": range(175, 256)}
SMALLEST_SHARE = 0.01  # smallest share of a grade's pixels in a JPEG mask; less may be an artefact of its edges
_TABLES = {"train": "partition/Test/Train.xlsx", "test": "partition/Test/Test.xlsx"}


class Builder(PublishedBuilder):
    """The patches of the official training and test parts: labels, masks of grades, and text made from labels."""

    FILES = (
        Files(_TABLES["train"], "labels", 1),
        Files(_TABLES["test"], "labels", 1),
        Files("images/*.jpg", "patches"),
        Files("masks/*.[jp][pn]g", "masks, .png or .jpg"),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def cases(self) -> Iterator[Item]:
        """One item per row. A slide (the name up to "_Block") counts as a patient."""
        for split, table in _TABLES.items():
            for row in read_workbook(self.raw / table, ("image_name", *CLASSES)):
                name = row["image_name"]
                image = self.raw / "images" / name
                item = Item(name, image, name.partition("_Block")[0], split=split, place=row.place)
                item.reject(fault_of_name(name))
                try:
                    labels = labels_of(row, CLASSES)
                    item.labels = {title: labels[column.lower()] for column, title in CLASSES.items()}
                except (KeyError, ImageError):
                    item.reject(row.fault(" and ".join(CLASSES), "a label is neither 0 nor 1"))
                if item.fault:
                    yield item
                    continue
                self.set_report(item, ". ".join(PHRASES[title] for title, value in item.labels.items() if value))
                if item.image.is_file() and not item.labels["non-cancerous"]:
                    masks = [self.raw / "masks" / f"{item.image.stem}.{ending}" for ending in ("png", "jpg")]
                    mask = next((path for path in masks if path.is_file()), None)
                    if mask is None:
                        self.lack(f"masks/{item.image.stem}.png or .jpg", "mask not there")
                        continue
                    try:
                        self._add_grades(item, mask)
                    except ImageError as error:
                        item.reject(str(error).removeprefix(f"{mask.name}: "))
                yield item

    def _add_grades(self, item: Item, mask: Path) -> None:
        """Adds a finding for each grade in the mask."""
        exact = mask.suffix == ".png"
        counts = np.bincount(read_label_image(mask).ravel(), minlength=256)
        if exact and counts.sum() != counts[[0, *GRADES.values()]].sum():
            raise ImageError("a value of its mask is none of 0, 3, 4, 5, so its grades are not known")
        for label, grade in GRADES.items():
            values = range(grade, grade + 1) if exact else GREYS[label]
            share = counts[values.start : values.stop].sum() / counts.sum()
            if share > (0 if exact else SMALLEST_SHARE):
                item.add(label, self.prompt_for(PHRASES[label]), MaskFile(mask, values))
