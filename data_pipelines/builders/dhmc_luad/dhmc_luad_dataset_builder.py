"""DHMC-LUAD: whole slides of lung adenocarcinoma with their predominant pattern. See docs/datasets/dhmc_luad.md."""

from collections.abc import Iterator

from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder

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
        unique = ("File Name",)
        for row in self.read_table(table, _COLUMNS, "a row per slide", unique=unique, names=unique):
            name, pattern = row["File Name"], row["Class"].lower()
            item = Item(name, slides.get(name, self.raw / name), name, slide=True, place=row.place)
            if pattern not in CLASSES:
                item.reject(row.fault("Class", f"none of {', '.join(CLASSES)}"))
            item.labels = {label: int(label == pattern) for label in CLASSES}
            self.set_report(item, "", TEXT.format(pattern=pattern))
            yield item
