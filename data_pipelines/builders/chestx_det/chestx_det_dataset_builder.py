"""ChestX-Det: polygons and boxes of radiologists on images of NIH ChestX-ray14. See docs/datasets/chestx_det.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from afloc_jax.errors import UserError
from afloc_jax.files import read_json
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.regions import Box, Polygon, Region

CLASSES = (
    "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "Diffuse Nodule", "Effusion", "Emphysema",
    "Fibrosis", "Fracture", "Mass", "Nodule", "Pleural Thickening", "Pneumothorax",
)  # fmt: skip
_IMAGES = 3578  # images of both parts


class Builder(PublishedBuilder):
    """The images of both official parts. All regions of a class on an image are one finding.

    Args:
        regions: "polygons" or "boxes".
    """

    FILES = (
        Files("ChestX_Det_train.json", "annotations", 1),
        Files("ChestX_Det_test.json", "annotations", 1),
        Files("train*/**/*.png", "images, train_data.zip"),
        Files("test*/**/*.png", "images, test_data.zip"),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, regions: Literal["polygons", "boxes"] = "polygons", **kwargs):
        self.regions = regions
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """One item per entry, in the order of the files."""
        total = 0
        for part in ("train", "test"):
            images = {path.name: path for path in sorted(self.raw.glob(f"{part}*/**/*.png"))}
            table = self.raw / f"ChestX_Det_{part}.json"
            entries = read_json(table)
            total += len(entries)
            for number, entry in enumerate(entries):
                try:
                    yield self._item(entry, part, images)
                except (KeyError, TypeError, ValueError):
                    raise UserError(f"{table.name}, entry {number}: not a file name, classes and regions") from None
        self.check_count("ChestX_Det_train.json and ChestX_Det_test.json", total, _IMAGES, "entries")

    def _item(self, entry: dict[str, Any], part: str, images: dict[str, Path]) -> Item:
        name = str(entry["file_name"])
        item = Item(f"{part}/{name}", images.get(name, self.raw / f"{part}_data" / name), split=part)
        item.labels = {label.lower(): int(label in entry["syms"]) for label in CLASSES}
        for label, shape in zip(entry["syms"], entry[self.regions], strict=True):
            region: Region = Polygon(shape)
            if self.regions == "boxes":
                left, top, right, bottom = (float(value) for value in shape)
                region = Box(left, top, right - left, bottom - top)
            item.add(label, self.prompt_for(label), region)
        return item
