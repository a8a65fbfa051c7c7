"""IDRiD: retinal photographs with lesion masks or grades, and a text made from them. See docs/datasets/idrid.md."""

from collections.abc import Iterator

from afloc_jax.errors import UsageError, UserError
from data_pipelines.builders.items import Item
from data_pipelines.builders.published import PublishedBuilder
from data_pipelines.builders.tables import Files, check_files, one_file, read_table
from data_pipelines.regions import MaskFile

LESIONS = {  # name -> folder, ending of the file name
    "microaneurysm": ("1. Microaneurysms", "MA"),
    "haemorrhage": ("2. Haemorrhages", "HE"),
    "hard exudate": ("3. Hard Exudates", "EX"),
    "soft exudate": ("4. Soft Exudates", "SE"),
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
    """One of the two image sets of IDRiD, with its official parts. Arguments: see PublishedBuilder, and

    Args:
        images: "segmentation" (81 images, masks of four lesions) or "grading" (516 images, grades). The sets show the
            same eyes in part and number them differently, so they are not built into one.
    """

    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, images: str = "segmentation", **kwargs):
        if images not in ("segmentation", "grading"):
            raise UsageError(f"images is {images!r}, must be segmentation or grading")
        self.images = images
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """Images in the order of their names, the training part first."""
        wanted = {"train": 54, "test": 27} if self.images == "segmentation" else {"train": 413, "test": 103}
        root = _SEGMENTATION if self.images == "segmentation" else _GRADING
        folders = {split: f"{root}/1. Original Images/{part}" for split, part in _PARTS.items()}
        files = [Files(f"{folders[split]}/IDRiD_*.jpg", "images", count) for split, count in wanted.items()]
        check_files(self.raw, files, self.partial)
        for split, folder in folders.items():
            grades = self._grades(split) if self.images == "grading" else {}
            for image in sorted((self.raw / folder).glob("IDRiD_*.jpg")):
                item = Item(
                    image.stem if self.images == "segmentation" else f"{split}/{image.stem}", image, split=split
                )
                if self.images == "segmentation":
                    self._add_lesions(item, split)
                else:
                    self._add_grades(item, grades.get(image.stem))
                yield item

    def _add_lesions(self, item: Item, split: str) -> None:
        """Masks, labels and one sentence per lesion: what is there and what is not."""
        root = self.raw / _SEGMENTATION / "2. All Segmentation Groundtruths" / _PARTS[split]
        sentences = []
        for lesion, (folder, ending) in LESIONS.items():
            mask = root / folder / f"{item.image.stem}_{ending}.tif"
            present = mask.is_file()  # a lesion that an image does not have has no file
            item.labels[lesion] = int(present)
            sentences.append(f"there are {lesion}s" if present else f"no {lesion}s")
            if present:
                item.add(lesion, self.asked(lesion), MaskFile(mask))
        self.set_report(item, ". ".join(sentences), "")

    def _add_grades(self, item: Item, row: dict[str, str] | None) -> None:
        if row is None:
            raise UserError(f"{item.image.name} has no row in the table of grades; fetch both again")
        try:
            grade, edema = int(row["Retinopathy grade"]), int(row["Risk of macular edema"])
            self.set_report(item, EDEMA[edema], GRADES[grade])
        except (ValueError, IndexError):
            raise UserError(f"{item.image.name}: its grades are not 0 to 4 and 0 to 2; fetch the table again") from None
        item.labels = {name: int(number == grade) for number, name in enumerate(GRADES)}
        item.labels["macular edema"] = int(edema > 0)

    def _grades(self, split: str) -> dict[str, dict[str, str]]:
        name = "Training" if split == "train" else "Testing"
        table = one_file(self.raw, f"{_GRADING}/2. Groundtruths/*{name} Labels.csv")
        return {row["Image name"]: row for row in read_table(table, _COLUMNS, "a row per image")}
