"""CXR-LT 2024: long-tailed labels for images of MIMIC-CXR-JPG, tasks 2 and 3. See docs/datasets/cxr_lt.md."""

from collections.abc import Iterator
from pathlib import Path

from afloc_jax.errors import UsageError
from data_pipelines.builders.items import Item
from data_pipelines.builders.published import PublishedBuilder
from data_pipelines.builders.tables import Files, check_files, labels_of, one_file, read_table

_KEYS = ("dicom_id", "subject_id", "study_id")
_ABOUT = frozenset({*_KEYS, "fpath", "path", "ViewPosition", "ViewCodeSequence_CodeMeaning", "split"})


class Builder(PublishedBuilder):
    """The labelled test images of a task. Arguments: see PublishedBuilder, and

    Args:
        task: 2 (26 classes, labelled by hand) or 3 (5 classes that training never names).
        table: pattern of the table below the raw folder; empty: any CSV file with "task2" or "task3" in its name.
        images: folder of MIMIC-CXR-JPG that holds files/p10/...; empty: the raw folder.
    """

    def __init__(self, *, task: int = 2, table: str = "", images: str = "", **kwargs):
        if task not in (2, 3):
            raise UsageError(f"task is {task!r}, must be 2 or 3")
        self.task, self.table, self.images = task, table or f"**/*task{task}*.csv*", images
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """One item per row; every column that is not about the image is a class."""
        check_files(self.raw, [Files(self.table, f"labels of task {self.task}", 1, _KEYS)])
        path = one_file(self.raw, self.table)
        folder = Path(self.images) if self.images else self.raw
        for row in read_table(path, _KEYS, "a row per image"):
            patient, study, name = row["subject_id"], row["study_id"], row["dicom_id"]
            image = folder / f"files/p{patient[:2]}/p{patient}/s{study}/{name}.jpg"
            item = Item(name, image, patient, row.get("ViewPosition", ""), study=study)
            item.labels = labels_of(row, [column for column in row if column not in _ABOUT], path.name)
            yield item
