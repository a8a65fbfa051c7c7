"""NIH ChestX-ray14: labels mined from reports, boxes for a part. See docs/datasets/nih.md."""

from collections.abc import Iterator

from afloc_jax.errors import UserError
from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import box_of, read_table
from data_pipelines.images import ImageError
from data_pipelines.regions import Box

CLASSES = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
_SIDE = 1024  # pixels; boxes are drawn on PNG files of this size, not on the original images that the table measures
_ENTRIES, _BOXES, _TEST, _REST = "Data_Entry_2017*.csv", "BBox_List_2017.csv", "test_list.txt", "train_val_list.txt"


class Builder(PublishedBuilder):
    """All images with their 14 labels, and the 984 boxes.

    The official test list is the test split. `fractions` divides the other patients into train and validation.
    """

    FILES = (
        Files(_ENTRIES, "labels", 1, ("Image Index", "Finding Labels", "Patient ID", "View Position"), rows=112120),
        Files(_BOXES, "boxes", 1, ("Image Index", "Finding Label", "Bbox [x"), rows=984),
        Files(_TEST, "official test images", 1),
        Files(_REST, "official images for training and validation", 1),
        Files("**/*_*.png", "images", 112120),
    )
    FRACTIONS = {"train": 0.9, "validation": 0.1}  # noqa: RUF012

    def cases(self) -> Iterator[Item]:
        """One item per row of the table of labels."""
        images = index_files(self.raw, [".png"])
        test, rest = (set((self.raw / name).read_text().split()) for name in (_TEST, _REST))
        boxes = self._boxes()
        for row in read_table(one_file(self.raw, _ENTRIES), ("Image Index",), "a row per image"):
            name = row["Image Index"]
            if name not in test and name not in rest:
                if not self.partial:
                    raise UserError(f"image {name} is in neither {_REST} nor {_TEST}; fetch the two lists again")
                self.drop("in neither official list")
                continue
            item = Item(name, images.get(name, self.raw / name), row["Patient ID"], row["View Position"])
            item.split = "test" if name in test else ""
            present = set(row["Finding Labels"].split("|"))
            if not present <= {*CLASSES, "No Finding"}:
                raise UserError(f"{name}: unknown label in Finding Labels; fetch the table of labels again")
            item.labels = {_plain(label): int(label in present) for label in CLASSES}
            item.annotated_size = (_SIDE, _SIDE)
            for label, box in boxes.get(name, ()):
                if isinstance(box, Box):
                    item.add(label, self.prompt_for(_plain(label)), box)
                else:
                    item.fault = item.fault or box
            yield item

    def _boxes(self) -> dict[str, list[tuple[str, Box | str]]]:
        """The boxes of each image with their labels, or what is wrong with the row of a box.

        Columns are read by position: the header splits "Bbox [x,y,w,h]" over four.
        """
        boxes: dict[str, list[tuple[str, Box | str]]] = {}
        for number, row in enumerate(read_table(self.raw / _BOXES, ("Image Index",), "a row per box"), start=2):
            cells = list(row.values())
            label = "Infiltration" if cells[1] == "Infiltrate" else cells[1]  # the only name in which the tables differ
            box: Box | str
            try:
                box = box_of(row, list(row)[2:6], f"{_BOXES}, row {number}")
            except ImageError as error:
                box = str(error)
            if label not in CLASSES:
                box = f"{_BOXES}, row {number}, column Finding Label: an unknown class"
            boxes.setdefault(cells[0], []).append((label, box))
        return boxes


def _plain(label: str) -> str:
    return label.replace("_", " ").lower()
