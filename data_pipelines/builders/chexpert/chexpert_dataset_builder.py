"""CheXpert: 14 labels from reports, with uncertainty. See docs/datasets/chexpert.md."""

from collections.abc import Iterator

from afloc_jax.errors import UserError
from data_pipelines.builders.mimic_cxr.mimic_cxr_dataset_builder import CLASSES
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import labels_of
from data_pipelines.images import ImageError

_SPLITS = {"train.csv": "train", "valid.csv": "validation", "test.csv": "test", "test_labels.csv": "test"}


class Builder(PublishedBuilder):
    """The images of the tables train.csv, valid.csv and, if it exists, test.csv.

    Args:
        frontal: keep frontal images only.
    """

    FILES = (
        Files("train.csv", "labels", 1, ("Path", *CLASSES), rows=223414),
        Files("valid.csv", "labels", 1, ("Path", *CLASSES), rows=234),
        Files("test.csv", "labels of the test images", 1, ("Path",), optional=True),
        Files("test_labels.csv", "labels of the test images", 1, ("Path",), optional=True, rows=668),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, frontal: bool = True, **kwargs):
        self.frontal = bool(frontal)
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """One item per row. Paths begin with the folder of the release, which may be the raw folder or inside it."""
        if all((self.raw / table).is_file() for table in ("test.csv", "test_labels.csv")):
            twice = "holds test.csv and test_labels.csv, which name the same images; keep one of them"
            raise UserError(f"{self.raw} {twice}")
        for table, split in _SPLITS.items():
            if not (self.raw / table).is_file():
                continue
            rows = self.read_table(self.raw / table, ("Path",), "a row per image", unique=("Path",), names=("Path",))
            for row in rows:
                patient, study, name = ("/" * 2 + row["Path"]).split("/")[-3:]
                view = "lateral" if "lateral" in name else "frontal"
                if self.frontal and view != "frontal":
                    self.drop("not frontal")
                    continue
                image = self.raw / row["Path"]
                if not image.is_file():
                    image = self.raw.joinpath(*row["Path"].split("/")[-4:])
                item = Item("/".join(image.parts[-4:]), image, patient, row.get("AP/PA") or view, split)
                item.study, item.place = f"{patient}/{study}", row.place
                try:
                    item.labels = labels_of(row, CLASSES)
                except ImageError as error:
                    item.reject(error)
                yield item
