"""PadChest: radiographs of Hospital San Juan with Spanish reports. See docs/datasets/padchest.md."""

import ast
from collections.abc import Iterable, Iterator

from data_pipelines.building.arguments import texts
from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import read_table

_TABLE = "PADCHEST_chest_x_ray_images_labels_160K*.csv*"
_COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "Labels")


class Builder(PublishedBuilder):
    """Pairs of an image and a report in Spanish.

    Args:
        views: values of Projection to keep; empty for all.
    """

    FILES = (
        Files(_TABLE, "reports and labels", columns=_COLUMNS),
        Files("**/*.png", "images, in folders 0 to 54 as unpacked or in one"),
    )
    FRACTIONS = {"train": 0.9, "validation": 0.05, "test": 0.05}  # noqa: RUF012

    def __init__(self, *, views: Iterable[str] = ("PA", "AP", "AP_horizontal"), **kwargs):
        self.views = frozenset(texts("views", views))
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """Images of the wanted projections that have a report, in the order of the table."""
        images = index_files(self.raw, [".png"])
        for row in read_table(one_file(self.raw, _TABLE), _COLUMNS, "a row per image"):
            name = row["ImageID"]
            if self.views and row["Projection"] not in self.views:
                self.drop("view not wanted")
                continue
            item = Item(name, images.get(name, self.raw / row["ImageDir"] / name), row["PatientID"], row["Projection"])
            item.study, item.sections = row["StudyID"], {"report": row["Report"]}
            item.labels = dict.fromkeys(_labels(row["Labels"]), 1)
            self.set_report(item, row["Report"])
            if item.sentences and row["Report"] != "nan":
                yield item
            else:
                self.drop("report without a sentence")


def _labels(text: str) -> list[str]:
    """The labels of a cell that holds a Python list of texts, stripped. An empty or malformed cell has none."""
    try:
        labels = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [label.strip().lower() for label in labels or () if isinstance(label, str) and label.strip()]
