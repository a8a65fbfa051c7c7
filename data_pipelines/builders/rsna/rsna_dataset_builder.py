"""RSNA Pneumonia Detection Challenge: boxes around lung opacities. See docs/datasets/rsna.md."""

from collections.abc import Iterator

from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import box_of
from data_pipelines.images import ImageError

_LABELS, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_SIDE = 1024  # pixels of the images that the boxes are drawn on
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
        key = "patientId"
        for row in self.read_table(self.raw / _LABELS, (key,), "a row per box", names=(key,), of_images=key):
            name = row["patientId"]
            if name not in items:
                image = self.raw / "stage_2_train_images" / f"{name}.dcm"
                items[name] = Item(name, image, name, annotated_size=(_SIDE, _SIDE), place=row.place)
            if row["Target"] not in ("0", "1"):
                items[name].reject(row.fault("Target", "neither 0 nor 1"))
                continue
            present = int(row["Target"])
            try:
                if present:
                    items[name].add("Pneumonia", self.prompt_for("Pneumonia"), box_of(row, _BOX))
            except ImageError as error:
                items[name].reject(error)
            items[name].labels["pneumonia"] = max(present, items[name].labels.get("pneumonia", 0))
        for row in self.read_table(self.raw / _CLASSES, ("patientId", "class"), "a row per box"):
            if row["patientId"] in items:
                items[row["patientId"]].labels[row["class"].lower()] = 1
        yield from items.values()
