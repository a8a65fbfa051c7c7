"""VinDr-CXR: boxes of three radiologists per training image, of a consensus per test image. See docs/datasets."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from afloc_jax.errors import UserError
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import read_table
from data_pipelines.regions import Box

_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_ABOUT = ("image_id", "rad_id", "rad_ID")
_ONE_NAME = {"other disease": "other diseases"}  # the only class with different names in the two parts


class Builder(PublishedBuilder):
    """DICOM images of both official parts.

    Args:
        readers: whether the boxes of all readers for a class are one finding ("united") or one per reader ("separate").
    """

    FILES = (
        Files("annotations/annotations_train.csv", "boxes", 1, ("image_id", "rad_id", "class_name", *_CORNERS)),
        Files("annotations/annotations_test.csv", "boxes", 1, ("image_id", "class_name", *_CORNERS)),
        Files("annotations/image_labels_train.csv", "labels by three readers", 1, ("image_id",), rows=45000),
        Files("annotations/image_labels_test.csv", "labels of the images", 1, ("image_id",), rows=3000),
        Files("train/*.dicom", "images", 15000),
        Files("test/*.dicom", "images", 3000),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, readers: Literal["united", "separate"] = "united", **kwargs):
        self.readers = readers
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """One item per image, the training part first."""
        for part in ("train", "test"):
            items = {  # patients are not published, so each image counts as a patient
                name: Item(name, self.raw / part / f"{name}.dicom", name, split=part, labels=labels)
                for name, labels in self._labels(part).items()
            }
            table = f"annotations_{part}.csv"
            for number, row in enumerate(self._rows(table), start=2):
                if row["class_name"] == "No finding":
                    continue
                try:
                    left, top, right, bottom = (float(row[column]) for column in _CORNERS)
                    item = items[row["image_id"]]
                except (ValueError, KeyError):
                    wrong = "unknown image, or a box that is not four numbers"
                    raise UserError(f"{table}, line {number}: {wrong}") from None
                reader = row.get("rad_id", "") if self.readers == "separate" else ""
                label = row["class_name"]
                item.add(label, self.prompt_for(label), Box(left, top, right - left, bottom - top), reader)
            yield from items.values()

    def _labels(self, part: str) -> dict[str, dict[str, int]]:
        """The labels of each image: 1 if more than half of its readers see the class."""
        votes: dict[str, list[dict[str, str]]] = defaultdict(list)
        table = f"image_labels_{part}.csv"
        for row in self._rows(table):
            votes[row["image_id"]].append(row)
        labels = {}
        for name, rows in votes.items():
            classes = [column for column in rows[0] if column not in _ABOUT]
            try:
                share = {column: sum(float(row[column]) for row in rows) / len(rows) for column in classes}
            except ValueError:
                raise UserError(f"{table}, image {name}: a label is not a number; fetch the table again") from None
            named = {_ONE_NAME.get(column.lower(), column.lower()): value for column, value in share.items()}
            labels[name] = {column: int(value > 0.5) for column, value in named.items()}
        return labels

    def _rows(self, table: str) -> list[dict[str, str]]:
        return read_table(self.raw / "annotations" / table, ("image_id",), "annotations of VinDr-CXR")
