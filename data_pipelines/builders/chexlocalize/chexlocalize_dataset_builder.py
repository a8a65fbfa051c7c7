"""CheXlocalize: pixel masks of radiologists for the validation and test images of CheXpert. See docs/datasets."""

from collections.abc import Iterator

from afloc_jax.errors import UserError
from afloc_jax.files import read_json
from data_pipelines.building.expected_files import Files, index_files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import labels_of, read_table
from data_pipelines.regions import CocoRuns

_SPLITS = {"val": "validation", "test": "test"}
_ABOUT = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "Study")


class Builder(PublishedBuilder):
    """The images of gt_segmentations_{val,test}.json, with one mask per class."""

    FILES = (
        Files("**/gt_segmentations_val.json", "masks of the radiologists, RLE", 1, part=True),
        Files("**/gt_segmentations_test.json", "masks of the radiologists, RLE", 1, part=True),
        Files("**/val*/patient*/study*/view*.jpg", "images of CheXpert, folder val or valid", 234, part=True),
        Files("**/test/patient*/study*/view*.jpg", "images of CheXpert", 668, part=True),
    )

    def cases(self) -> Iterator[Item]:
        """The images of the mask files, validation first."""
        paths = sorted(self.raw.glob("**/patient*/study*/view*.jpg"))
        images = {"_".join((*path.parts[-3:-1], path.stem)): path for path in paths}
        labels = self._labels()
        for short, split in _SPLITS.items():
            for path in sorted(self.raw.glob(f"**/gt_segmentations_{short}.json")):
                content = read_json(path)
                if not isinstance(content, dict):
                    raise UserError(f"{path} must map images to classes and masks")
                for key, classes in content.items():
                    if not (isinstance(classes, dict) and all(isinstance(rle, dict) for rle in classes.values())):
                        raise UserError(f"{path.name}, image {key}: must map classes to masks (size, counts)")
                    patient, study, view = (key.split("_", 2) + ["", ""])[:3]
                    image = images.get(key, self.raw / patient / study / f"{view}.jpg")
                    item = Item(key, image, patient, "lateral" if "lateral" in view else "frontal", split)
                    item.study = f"{patient}/{study}"
                    item.labels = labels.get(key, {})
                    for name, rle in classes.items():
                        region = CocoRuns(rle)
                        if not region.empty:  # an absent class has an empty mask
                            item.add(name, self.prompt_for(name), region)
                    yield item

    def _labels(self) -> dict[str, dict[str, int]]:
        """The labels of each image, from the tables shipped with the images; empty without them."""
        labels = {}
        for name, path in index_files(self.raw, [".csv"]).items():
            if name not in ("valid.csv", "val_labels.csv", "test_labels.csv"):
                continue
            for row in read_table(path, ("Path",), "a row per image"):
                classes = [column for column in row if column not in _ABOUT]
                labels["_".join(row["Path"].removesuffix(".jpg").split("/")[-3:])] = labels_of(row, classes, name)
        return labels
