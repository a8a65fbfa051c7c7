"""CheXlocalize: pixel masks of radiologists for the validation and test images of CheXpert. See docs/datasets."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from afloc_jax.errors import UserError
from afloc_jax.files import read_json
from afloc_jax.tables import Row
from data_pipelines.building.expected_files import Files, index_files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import labels_of
from data_pipelines.images import ImageError
from data_pipelines.regions import CocoRuns

_SPLITS = {"val": "validation", "test": "test"}
_LABELS = ("valid.csv", "val_labels.csv", "test_labels.csv")
_ABOUT = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "Study")


class Builder(PublishedBuilder):
    """The images of both parts. gt_segmentations_{val,test}.json lists those with a finding, with a mask per class."""

    FILES = (
        Files("**/gt_segmentations_val.json", "masks of the radiologists, RLE", 1, part=True),
        Files("**/gt_segmentations_test.json", "masks of the radiologists, RLE", 1, part=True),
        Files("**/val*/patient*/study*/view*.jpg", "images of CheXpert, folder val or valid", 234, part=True),
        Files("**/test/patient*/study*/view*.jpg", "images of CheXpert", 668, part=True),
    )

    def cases(self) -> Iterator[Item]:
        """The images of the mask files, validation first."""
        for short, split in _SPLITS.items():
            for path in self._mask_files(short):
                content = read_json(path)
                if not isinstance(content, dict):
                    raise UserError(f"{path} must map images to classes and masks")
                for number, (key, classes) in enumerate(content.items()):
                    item = self._item(key, split)
                    item.place = f"{path.name}, image {number}"
                    if not (isinstance(classes, dict) and all(isinstance(rle, dict) for rle in classes.values())):
                        item.reject(f"{item.place}: must map classes to masks (size, counts)")
                        classes = {}
                    for name, rle in classes.items():
                        region = CocoRuns(rle)
                        item.annotated_size = region.size
                        if not region.empty:  # an absent class has an empty mask
                            item.add(name, self.prompt_for(name), region)
                    yield item

    def unnamed(self, cases: Sequence[Item]) -> list[Item]:
        """The images of a part that its mask file does not list: they show none of its classes."""
        listed = {item.id for item in cases}
        parts = {short: split for short, split in _SPLITS.items() if self._mask_files(short)}
        found = []
        for key, path in self._images.items():
            folder = path.parts[-4]
            split = parts.get("val" if folder.startswith("val") else folder)
            if split and key not in listed:
                found.append(self._item(key, split))
        return found

    def _item(self, key: str, split: str) -> Item:
        patient, study, view = (key.split("_", 2) + ["", ""])[:3]
        image = self._images.get(key, self.raw / patient / study / f"{view}.jpg")
        item = Item(key, image, patient, "lateral" if "lateral" in view else "frontal", split)
        item.study = f"{patient}/{study}"
        try:
            row = self._rows.get(key)
            item.labels = labels_of(row, [name for name in row if name not in _ABOUT]) if row else {}
        except ImageError as error:
            item.reject(error)
        return item

    def _mask_files(self, short: str) -> list[Path]:
        return sorted(self.raw.glob(f"**/gt_segmentations_{short}.json"))

    @cached_property
    def _images(self) -> dict[str, Path]:
        """The images of both parts by the name that the mask files give them."""
        paths = sorted(self.raw.glob("**/patient*/study*/view*.jpg"))
        return {"_".join((*path.parts[-3:-1], path.stem)): path for path in paths}

    @cached_property
    def _rows(self) -> dict[str, Row]:
        """The row of labels of each image, from the tables shipped with the images; empty without them."""
        tables = [path for name, path in index_files(self.raw, [".csv"]).items() if name in _LABELS]
        rows = [row for path in tables for row in self.read_table(path, ("Path",), "a row per image", unique=("Path",))]
        return {"_".join(row["Path"].removesuffix(".jpg").split("/")[-3:]): row for row in rows}
