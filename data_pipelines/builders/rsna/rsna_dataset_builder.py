"""RSNA Pneumonia Detection Challenge: boxes around lung opacities. See docs/datasets/rsna.md."""

from collections.abc import Iterator

from afloc_jax.errors import UserError
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import read_table
from data_pipelines.regions import Box

_LABELS, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_BOX = ("x", "y", "width", "height")


class Builder(PublishedBuilder):
    """The 26,684 images with labels (those of the test folder have none)."""

    FILES = (
        Files(_LABELS, "boxes", 1, ("patientId", *_BOX, "Target"), rows=30227),
        Files(_CLASSES, "classes", 1, ("patientId", "class"), rows=30227),
        Files("stage_2_train_images/*.dcm", "images", 26684),
    )

    def cases(self) -> Iterator[Item]:
        """One item per image, in the order of the table of boxes."""
        items: dict[str, Item] = {}
        for number, row in enumerate(read_table(self.raw / _LABELS, ("patientId",), "a row per box"), start=2):
            name = row["patientId"]
            if name not in items:
                items[name] = Item(name, self.raw / "stage_2_train_images" / f"{name}.dcm", name)
            try:
                present = int(row["Target"])
                if present:
                    x, y, width, height = (float(row[column]) for column in _BOX)
                    items[name].add("Pneumonia", self.prompt_for("Pneumonia"), Box(x, y, width, height))
            except ValueError:
                wrong = "Target or the box is not a number; fetch it again"
                raise UserError(f"{_LABELS}, line {number}: {wrong}") from None
            items[name].labels["pneumonia"] = max(present, items[name].labels.get("pneumonia", 0))
        for row in read_table(self.raw / _CLASSES, ("patientId", "class"), "a row per box"):
            if row["patientId"] in items:
                items[row["patientId"]].labels[row["class"].lower()] = 1
        yield from items.values()
