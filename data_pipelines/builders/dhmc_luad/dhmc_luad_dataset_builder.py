"""DHMC-LUAD: whole slides of lung adenocarcinoma with their predominant pattern. See docs/datasets/dhmc_luad.md."""

from collections.abc import Iterator

from afloc_jax.errors import UserError
from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import read_table

CLASSES = ("acinar", "lepidic", "micropapillary", "papillary", "solid")
TEXT = "lung adenocarcinoma with a predominantly {pattern} growth pattern"
_TABLE, _COLUMNS = "**/MetaData_Release_1.0.csv", ("File Name", "Class")


class Builder(PublishedBuilder):
    """One record per slide, all in the test split, from a small level of its pyramid (data_pipelines/slides.py)."""

    FILES = (Files(_TABLE, "labels", 1, _COLUMNS, rows=143), Files("**/*.tif", "slides", 143))

    def cases(self) -> Iterator[Item]:
        """One item per row. Patients are not published, so each slide counts as a patient."""
        slides = index_files(self.raw, [".tif"])
        table = one_file(self.raw, _TABLE)
        for number, row in enumerate(read_table(table, _COLUMNS, "a row per slide"), start=2):
            name, pattern = row["File Name"], row["Class"].lower()
            if pattern not in CLASSES:
                raise UserError(f"{table.name}, line {number}: Class is none of {', '.join(CLASSES)}; fetch it again")
            item = Item(name, slides.get(name, self.raw / name), name, slide=True)
            item.labels = {label: int(label == pattern) for label in CLASSES}
            self.set_report(item, "", TEXT.format(pattern=pattern))
            yield item
