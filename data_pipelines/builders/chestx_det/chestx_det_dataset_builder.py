"""ChestX-Det: polygons and boxes of radiologists on images of NIH ChestX-ray14. See docs/datasets/chestx_det.md."""

from collections.abc import Iterator
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
_SIDE = 1024  # pixels of the images that the regions are drawn on, those of NIH ChestX-ray14


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
            if not isinstance(entries, list):
                raise UserError(f"{table}: must be a list of entries; fetch it again")
            total += len(entries)
            for number, entry in enumerate(entries):
                where = f"{table.name}, entry {number}"
                try:
                    name = str(entry["file_name"])
                except (KeyError, TypeError):
                    yield Item(where, table, fault=f"{where}, file_name: missing", place=where)
                    continue
                path = images.get(name, self.raw / f"{part}_data" / name)
                item = Item(f"{part}/{name}", path, split=part, place=where)
                item.annotated_size = (_SIDE, _SIDE)
                try:
                    self._annotate(item, entry)
                except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
                    item.fault = f"{where}, syms and {self.regions}: not as many regions as classes, or malformed"
                yield item
        self.check_count("ChestX_Det_train.json and ChestX_Det_test.json", total, _IMAGES, "entries")

    def _annotate(self, item: Item, entry: dict[str, Any]) -> None:
        item.labels = {label.lower(): int(label in entry["syms"]) for label in CLASSES}
        for label, shape in zip(entry["syms"], entry[self.regions], strict=True):
            region: Region = Polygon(shape)
            if self.regions == "boxes":
                left, top, right, bottom = (float(value) for value in shape)
                region = Box(left, top, right - left, bottom - top)
            item.add(label, self.prompt_for(label), region)
