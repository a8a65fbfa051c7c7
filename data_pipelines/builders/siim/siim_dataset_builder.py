"""SIIM-ACR Pneumothorax Segmentation: run-length masks of pneumothoraces. See docs/datasets/siim.md."""

from collections.abc import Iterator

from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.regions import GapRuns

_TABLE = "*train*.csv"
_COLUMNS = ("ImageId", "EncodedPixels")
_LABEL = "Pneumothorax"


class Builder(PublishedBuilder):
    """The images in the table of masks. All rows of an image are one finding."""

    FILES = (
        Files(_TABLE, "masks, train-rle.csv or stage_2_train.csv", 1, _COLUMNS),
        Files("**/*.dcm", "images, dicom-images-train"),
    )

    def cases(self) -> Iterator[Item]:
        """One item per image. The mask "-1" stands for no pneumothorax."""
        images = index_files(self.raw, [".dcm"])
        items: dict[str, Item] = {}
        table, key = one_file(self.raw, _TABLE), "ImageId"
        for row in self.read_table(table, _COLUMNS, "a row per mask", names=(key,), of_images=key):
            name, runs = row["ImageId"], row["EncodedPixels"]
            if name not in items:
                items[name] = Item(name, images.get(f"{name}.dcm", self.raw / f"{name}.dcm"), place=row.place)
                items[name].labels["pneumothorax"] = 0
            if runs != "-1":
                items[name].add(_LABEL, self.prompt_for(_LABEL), GapRuns(runs))
                items[name].labels["pneumothorax"] = 1
        yield from items.values()
