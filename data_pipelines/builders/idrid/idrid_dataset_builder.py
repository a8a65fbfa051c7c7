"""IDRiD: retinal photographs with lesion masks or grades, and a text made from them. See docs/datasets/idrid.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from afloc_jax.tables import Row
from data_pipelines.building.expected_files import Files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.regions import MaskFile

LESIONS = {  # name -> folder, ending of the file name
    "microaneurysm": ("1. Microaneurysms", "MA"),
    "haemorrhage": ("2. Haemorrhages", "HE"),
    "hard exudate": ("3. Hard Exudates", "EX"),
    "soft exudate": ("4. Soft Exudates", "SE"),
}
# The numbers of images, and of masks by lesion. An image without a lesion has no mask file. A missing file means an
# absent lesion only if the download has all masks of that lesion.
IMAGES = {"segmentation": {"train": 54, "test": 27}, "grading": {"train": 413, "test": 103}}
MASKS = {
    "microaneurysm": {"train": 54, "test": 27},
    "haemorrhage": {"train": 53, "test": 27},
    "hard exudate": {"train": 54, "test": 27},
    "soft exudate": {"train": 26, "test": 14},
}
GRADES = (
    "no apparent diabetic retinopathy",
    "mild non-proliferative diabetic retinopathy",
    "moderate non-proliferative diabetic retinopathy",
    "severe non-proliferative diabetic retinopathy",
    "proliferative diabetic retinopathy",
)
EDEMA = ("no risk of macular edema", "mild risk of macular edema", "severe risk of macular edema")
_SEGMENTATION, _GRADING = "A. Segmentation", "B. Disease Grading"
_PARTS = {"train": "a. Training Set", "test": "b. Testing Set"}
_COLUMNS = ("Image name", "Retinopathy grade", "Risk of macular edema")


class Builder(PublishedBuilder):
    """One of the two image sets of IDRiD, with its official parts.

    Args:
        images: "segmentation" (81 images, masks of four lesions) or "grading" (516 images, grades). The two sets are
            not combined, because they partly show the same eyes under different numbers.
    """

    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, images: Literal["segmentation", "grading"] = "segmentation", **kwargs):
        self.images = images
        super().__init__(**kwargs)

    def files(self) -> Sequence[Files]:
        files = [Files(self._images(split), "images", count) for split, count in IMAGES[self.images].items()]
        if self.images == "segmentation":
            files += [
                Files(self._masks(lesion, split), f"masks of {lesion}s", count, part=True)
                for lesion, counts in MASKS.items()
                for split, count in counts.items()
            ]
        return files

    def _images(self, split: str) -> str:
        root = _SEGMENTATION if self.images == "segmentation" else _GRADING
        return f"{root}/1. Original Images/{_PARTS[split]}/IDRiD_*.jpg"

    @staticmethod
    def _masks(lesion: str, split: str) -> str:
        folder, ending = LESIONS[lesion]
        return f"{_SEGMENTATION}/2. All Segmentation Groundtruths/{_PARTS[split]}/{folder}/IDRiD_*_{ending}.tif"

    def cases(self) -> Iterator[Item]:
        """Images in the order of their names, the training part first."""
        for split in _PARTS:
            grades = self._grades(split) if self.images == "grading" else {}
            masks = {lesion: set(self.raw.glob(self._masks(lesion, split))) for lesion in LESIONS}
            for image in sorted(self.raw.glob(self._images(split))):
                item = Item(image.stem, image, split=split)
                if self.images == "segmentation":
                    self._add_lesions(item, split, masks)
                    if not item.labels:
                        self.drop("no lesion known")
                        continue
                else:
                    item.id = f"{split}/{image.stem}"
                    self._add_grades(item, grades.get(image.stem), split)
                yield item

    def _add_lesions(self, item: Item, split: str, masks: dict[str, set[Path]]) -> None:
        """Adds masks, labels and one sentence for each lesion that is known to be present or absent."""
        sentences = []
        for lesion, files in masks.items():
            mask = self.raw / self._masks(lesion, split).replace("IDRiD_*", item.image.stem)
            if mask in files:
                item.add(lesion, self.prompt_for(lesion), MaskFile(mask))
            elif len(files) != MASKS[lesion][split]:
                continue  # the download has a part of the masks only, so the lesion may be present
            item.labels[lesion] = int(mask in files)
            sentences.append(f"there are {lesion}s" if mask in files else f"no {lesion}s")
        self.set_report(item, ". ".join(sentences))

    def _add_grades(self, item: Item, row: Row | None, split: str) -> None:
        if row is None:
            item.reject(f"no row in the table of grades of the {split} part")
            return
        item.place = row.place
        grade, edema = (_grade(row[column]) for column in _COLUMNS[1:])
        if not (0 <= grade < len(GRADES) and 0 <= edema < len(EDEMA)):
            item.reject(row.fault(" and ".join(_COLUMNS[1:]), "the grades are not 0 to 4 and 0 to 2"))
            return
        self.set_report(item, EDEMA[edema], GRADES[grade])
        item.labels = {name: int(number == grade) for number, name in enumerate(GRADES)}
        item.labels["macular edema"] = int(edema > 0)

    def _grades(self, split: str) -> dict[str, Row]:
        name = "Training" if split == "train" else "Testing"
        table = one_file(self.raw, f"{_GRADING}/2. Groundtruths/*{name} Labels.csv")
        rows = self.read_table(table, _COLUMNS, "a row per image", unique=("Image name",))
        return {row["Image name"]: row for row in rows}


def _grade(cell: str) -> int:
    return int(cell) if cell in tuple("01234") else -1
