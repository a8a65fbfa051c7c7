"""NIH ChestX-ray14: labels mined from reports, boxes for a part. See docs/datasets/nih.md."""

from collections.abc import Iterator

from afloc_jax.tables import read_text
from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.tables import box_of
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
        test, rest = (set(read_text(self.raw / name).split()) for name in (_TEST, _REST))
        boxes = self._boxes()
        unique = ("Image Index",)
        for row in self.read_table(
            one_file(self.raw, _ENTRIES), unique, "a row per image", unique=unique, names=unique
        ):
            name = row["Image Index"]
            if name not in test and name not in rest and self.partial:
                self.drop("in neither official list")
                continue
            item = Item(name, images.get(name, self.raw / name), row["Patient ID"], row["View Position"])
            item.split, item.place = "test" if name in test else "", row.place
            present = set(row["Finding Labels"].split("|"))
            if name not in test and name not in rest:
                item.reject(row.fault("Image Index", f"in neither {_REST} nor {_TEST}"))
            if not present <= {*CLASSES, "No Finding"}:
                item.reject(row.fault("Finding Labels", "an unknown label"))
            item.labels = {_plain(label): int(label in present) for label in CLASSES}
            item.annotated_size = (_SIDE, _SIDE)
            for label, box in boxes.get(name, ()):
                if isinstance(box, Box):
                    item.add(label, self.prompt_for(_plain(label)), box)
                else:
                    item.reject(box)
            yield item

    def _boxes(self) -> dict[str, list[tuple[str, Box | str]]]:
        """The boxes of each image with their labels, or what is wrong with the row of a box.

        Columns are read by position: the header splits "Bbox [x,y,w,h]" over four.
        """
        boxes: dict[str, list[tuple[str, Box | str]]] = {}
        key = "Image Index"
        for row in self.read_table(self.raw / _BOXES, (key,), "a row per box", of_images=key):
            cells = list(row.values())
            label = "Infiltration" if cells[1] == "Infiltrate" else cells[1]  # the only name in which the tables differ
            box: Box | str
            try:
                box = box_of(row, list(row)[2:6])
            except ImageError as error:
                box = str(error)
            if label not in CLASSES:
                box = str(row.fault("Finding Label", "an unknown class"))
            boxes.setdefault(cells[0], []).append((label, box))
        return boxes


def _plain(label: str) -> str:
    return label.replace("_", " ").lower()
