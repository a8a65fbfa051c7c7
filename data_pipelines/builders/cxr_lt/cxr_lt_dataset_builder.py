"""CXR-LT 2024: long-tailed labels for images of MIMIC-CXR-JPG, tasks 2 and 3. See docs/datasets/cxr_lt.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from data_pipelines.building.expected_files import Files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import labels_of
from data_pipelines.images import ImageError

TEST_TABLES = "**/test_labeled_task*.csv"
_KEYS = ("dicom_id", "subject_id", "study_id")
CLASSES = {
    2: (
        "Atelectasis", "Calcification of the Aorta", "Cardiomegaly", "Consolidation", "Edema", "Emphysema",
        "Enlarged Cardiomediastinum", "Fibrosis", "Fracture", "Hernia", "Infiltration", "Lung Lesion", "Lung Opacity",
        "Mass", "Normal", "Nodule", "Pleural Effusion", "Pleural Other", "Pleural Thickening", "Pneumomediastinum",
        "Pneumonia", "Pneumoperitoneum", "Pneumothorax", "Subcutaneous Emphysema", "Support Devices",
        "Tortuous Aorta",
    ),
    3: ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis"),
}  # fmt: skip


class Builder(PublishedBuilder):
    """The labelled test images of a task.

    Args:
        task: 2 (26 classes, labelled by hand) or 3 (5 classes that are not in the training labels).
        images: the folder of MIMIC-CXR-JPG that holds files/p10/...; empty for the raw folder.
    """

    FOLDERS = ("images",)

    def __init__(self, *, task: Literal[2, 3] = 2, images: str = "", **kwargs):
        self.task, self.images = task, images
        super().__init__(**kwargs)

    def files(self) -> Sequence[Files]:
        table = f"**/test_labeled_task{self.task}.csv"
        return [Files(table, f"labels of task {self.task}", 1, (*_KEYS, *CLASSES[self.task]))]

    def cases(self) -> Iterator[Item]:
        """One item per row of test_labeled_task2.csv or test_labeled_task3.csv."""
        classes = CLASSES[self.task]
        path = one_file(self.raw, self.files()[0].pattern)
        folder = Path(self.images) if self.images else self.raw
        for row in self.read_table(path, _KEYS, "a row per image", unique=("dicom_id",), names=_KEYS):
            patient, study, name = row["subject_id"], row["study_id"], row["dicom_id"]
            image = folder / f"files/p{patient[:2]}/p{patient}/s{study}/{name}.jpg"
            item = Item(name, image, patient, row.get("ViewPosition", ""), study=study, place=row.place)
            try:
                item.labels = labels_of(row, classes)
            except ImageError as error:
                item.reject(error)
            yield item
