"""PadChest: radiographs of Hospital San Juan with Spanish reports. See docs/datasets/padchest.md."""

import ast
from collections.abc import Iterable, Iterator, Sequence

from afloc_jax.tables import Row, read_table
from data_pipelines.builders.padchest_gr.padchest_gr_dataset_builder import MASTER_TABLE
from data_pipelines.building.arguments import texts
from data_pipelines.building.exclusion import patients_of
from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder

_TABLE = "PADCHEST_chest_x_ray_images_labels_160K*.csv*"
_COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "Labels")


class Builder(PublishedBuilder):
    """Pairs of an image and a report in Spanish.

    Args:
        views: values of Projection to keep; empty for all.
        exclude_padchest_gr: whether to leave out all patients with a study in PadChest-GR, whose images are PadChest's,
            where its table lies below the raw folder. Without it the build report says that none was left out.
    """

    FILES = (
        Files(_TABLE, "reports and labels", columns=_COLUMNS),
        Files("**/*.png", "images, in folders 0 to 54 as unpacked or in one"),
    )
    FRACTIONS = {"train": 0.9, "validation": 0.05, "test": 0.05}  # noqa: RUF012

    def __init__(
        self,
        *,
        views: Iterable[str] = ("PA", "AP", "AP_horizontal"),
        exclude_padchest_gr: bool = True,
        **kwargs,
    ):
        self.views, self.exclude_padchest_gr = frozenset(texts("views", views)), bool(exclude_padchest_gr)
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """Images of the wanted projections that have a report, in the order of the table."""
        images = index_files(self.raw, [".png"])
        names, unique = ("ImageDir", "ImageID"), ("ImageID",)
        rows = self.read_table(one_file(self.raw, _TABLE), _COLUMNS, "a row per image", unique=unique, names=names)
        excluded = self._patients_of_padchest_gr(rows) if self.exclude_padchest_gr else frozenset()
        for row in rows:
            name = row["ImageID"]
            if self.views and row["Projection"] not in self.views:
                self.drop("view not wanted")
                continue
            if row["PatientID"] in excluded:
                self.drop("patient of PadChest-GR")
                continue
            item = Item(name, images.get(name, self.raw / row["ImageDir"] / name), row["PatientID"], row["Projection"])
            item.study, item.sections, item.place = row["StudyID"], {"report": row["Report"]}, row.place
            item.labels = dict.fromkeys(_labels(row["Labels"]), 1)
            self.set_report(item, row["Report"])
            if item.sentences and row["Report"] != "nan":
                yield item
            else:
                self.drop("report without a sentence")

    def _patients_of_padchest_gr(self, rows: Sequence[Row]) -> frozenset[str]:
        """The patients in PadChest-GR's table, and those of its studies, should the two number patients differently."""
        tables = sorted(self.raw.glob(f"**/{MASTER_TABLE}"))
        if not tables:
            self.account.notes.append(
                f"no {MASTER_TABLE} of PadChest-GR below the raw folder: its patients are among the records; put the "
                "table there, or do not evaluate on PadChest-GR"
            )
        studies = {row["StudyID"] for table in tables for row in read_table(table, ("StudyID",)).whole()}
        return patients_of(tables) | {row["PatientID"] for row in rows if row["StudyID"] in studies}


def _labels(text: str) -> list[str]:
    """The labels of a cell that holds a Python list of texts, stripped. An empty or malformed cell has none."""
    try:
        labels = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [label.strip().lower() for label in labels or () if isinstance(label, str) and label.strip()]
