"""ROCO, versions 1 and 2: images of articles with their captions. See docs/datasets/roco.md."""

from collections.abc import Iterable, Iterator, Sequence

from afloc_jax.tables import read_text
from data_pipelines.building.arguments import texts
from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder

_PARTS = ("train", "validation", "test")
_CAPTIONS = "radiology/captions.txt"
_SECOND = {  # the tables of version 2, with their numbers of rows
    "train": ("train_captions.csv", 59958),
    "validation": ("valid_captions.csv", 9904),
    "test": ("test_captions.csv", 9927),
}
_COLUMNS = ("ID", "Caption")


class Builder(PublishedBuilder):
    """Radiology images of the three official parts, of the version whose tables are in the raw folder.

    Args:
        containing: keep captions with at least one of these phrases (ignoring case); empty for all. ROCO contains all
            modalities; ("chest x-ray", "chest radiograph") keeps chest radiographs.
    """

    FILES = tuple(
        Files(f"{part}/{pattern}", purpose)
        for part in _PARTS
        for pattern, purpose in ((_CAPTIONS, "captions"), ("radiology/images/ROCO_*.jpg", "images"))
    )
    SECOND = (
        *(Files(f"**/{name}", "captions of version 2", 1, _COLUMNS, rows=rows) for name, rows in _SECOND.values()),
        *(Files(f"**/ROCOv2_2023_{name}_*.jpg", "images of version 2") for name in ("train", "valid", "test")),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, containing: Iterable[str] = (), **kwargs):
        self.containing = [phrase.lower() for phrase in texts("containing", containing)]
        super().__init__(**kwargs)

    def files(self) -> Sequence[Files]:
        return self.SECOND if self._is_second else self.FILES

    def cases(self) -> Iterator[Item]:
        """One item per caption, in the order of the files."""
        for item, caption in self._second() if self._is_second else self._first():
            if item.fault:
                yield item
            elif self.containing and not any(phrase in caption.lower() for phrase in self.containing):
                self.drop("other caption")
            else:
                item.sections = {"caption": caption.strip()}
                self.set_report(item, caption)
                if item.sentences:
                    yield item
                else:
                    self.drop("caption without a sentence")

    @property
    def _is_second(self) -> bool:
        return any(self.raw.glob(f"**/{_SECOND['train'][0]}"))

    def _first(self) -> Iterator[tuple[Item, str]]:
        """The captions of version 1, a line each: name, a tab, the caption."""
        for part in _PARTS:
            path = self.raw / part / _CAPTIONS
            lines = read_text(path).split("\n")  # a caption may contain other line separators of Unicode
            for number, line in enumerate(lines, start=1):
                name, tab, caption = line.partition("\t")
                image = self.raw / part / "radiology" / "images" / f"{name.strip()}.jpg"
                where = f"{part}/{_CAPTIONS}, line {number}"
                if tab:
                    yield Item(name.strip(), image, split=part, place=where), caption
                elif line.strip():
                    yield Item(where, path, fault=f"{where}: no tab between name and caption", place=where), ""

    def _second(self) -> Iterator[tuple[Item, str]]:
        """The captions of version 2, from its three tables. Its images are found by name, in whatever folder."""
        images = index_files(self.raw, [".jpg"])
        for part, (table, _) in _SECOND.items():
            path = one_file(self.raw, f"**/{table}")
            for row in self.read_table(path, _COLUMNS, "a row per image", unique=("ID",), names=("ID",)):
                file = f"{row['ID']}.jpg"
                item = Item(row["ID"], images.get(file, self.raw / part / file), split=part, place=row.place)
                if not item.id:
                    item.id = row.place
                    item.reject(row.fault("ID", "empty"))
                yield item, row["Caption"]
