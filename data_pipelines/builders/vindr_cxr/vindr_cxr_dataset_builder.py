"""VinDr-CXR: boxes of three radiologists per training image, of a consensus per test image. See docs/datasets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from afloc_jax.tables import Row
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import box_of
from data_pipelines.images import ImageError
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
            items = {item.id: item for item in self._labelled(part)}
            for row in self._rows(f"annotations_{part}.csv"):
                item = items.get(row["image_id"])
                if item is None:
                    yield Item(row.place, self.raw, place=row.place, fault=str(row.fault("image_id", "unknown image")))
                elif row["class_name"] != "No finding":
                    try:
                        self._add_box(item, row)
                    except ImageError as error:
                        item.reject(error)
            yield from items.values()

    def _add_box(self, item: Item, row: Row) -> None:
        box = box_of(row, _CORNERS)  # two corners
        reader = row.get("rad_id", "") if self.readers == "separate" else ""
        region = Box(box.x, box.y, box.width - box.x, box.height - box.y)
        item.add(row["class_name"], self.prompt_for(row["class_name"]), region, reader)

    def _labelled(self, part: str) -> Iterator[Item]:
        """The images with their labels: 1 if more than half of the readers of an image see the class."""
        votes: dict[str, list[Row]] = defaultdict(list)
        for row in self._rows(f"image_labels_{part}.csv"):
            votes[row["image_id"]].append(row)
        for name, rows in votes.items():
            # Patients are not published, so each image counts as a patient.
            item = Item(name, self.raw / part / f"{name}.dicom", name, split=part, place=rows[0].place)
            for column in (column for column in rows[0] if column not in _ABOUT):
                try:
                    share = sum(float(row[column]) for row in rows) / len(rows)
                except ValueError:
                    item.reject(rows[0].fault(column, "here or in another row of the image, a label is not a number"))
                    break
                item.labels[_ONE_NAME.get(column.lower(), column.lower())] = int(share > 0.5)
            yield item

    def _rows(self, table: str) -> Sequence[Row]:
        path = self.raw / "annotations" / table
        key = "image_id"
        return self.read_table(path, (key,), "annotations of VinDr-CXR", names=(key,), of_images=key)
