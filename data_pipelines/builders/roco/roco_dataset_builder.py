"""ROCO: images of articles with their captions. See docs/datasets/roco.md."""

from collections.abc import Iterable, Iterator

from afloc_jax.errors import UserError
from data_pipelines.building.arguments import texts
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder

_CAPTIONS = "radiology/captions.txt"


class Builder(PublishedBuilder):
    """Radiology images of the three official parts.

    Args:
        containing: keep captions with at least one of these phrases (ignoring case); empty for all. ROCO contains all
            modalities; ("chest x-ray", "chest radiograph") keeps chest radiographs.
    """

    FILES = tuple(
        Files(f"{part}/{pattern}", purpose)
        for part in ("train", "validation", "test")
        for pattern, purpose in ((_CAPTIONS, "captions"), ("radiology/images/ROCO_*.jpg", "images"))
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, containing: Iterable[str] = (), **kwargs):
        self.containing = [phrase.lower() for phrase in texts("containing", containing)]
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """One item per caption, in the order of the files: name, a tab, the caption."""
        for part in ("train", "validation", "test"):
            path = self.raw / part / _CAPTIONS
            try:
                with path.open(encoding="utf-8", newline="\n") as file:
                    lines = list(file)  # a caption may contain other line separators of Unicode
            except UnicodeDecodeError:
                raise UserError(f"{path} is not UTF-8 text; fetch it again") from None
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                name, tab, caption = line.partition("\t")
                if not tab:
                    raise UserError(f"{path}, line {number}: no tab between name and caption; fetch it again")
                if self.containing and not any(phrase in caption.lower() for phrase in self.containing):
                    self.drop("other caption")
                    continue
                name = name.strip()
                item = Item(name, self.raw / part / "radiology" / "images" / f"{name}.jpg", split=part)
                item.sections = {"caption": caption.strip()}
                self.set_report(item, caption)
                if item.sentences:
                    yield item
                else:
                    self.drop("caption without a sentence")
