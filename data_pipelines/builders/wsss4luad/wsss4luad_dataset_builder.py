"""WSSS4LUAD: tissue of lung adenocarcinoma, labels of patches and masks of larger fields. See docs/datasets."""

import re
from collections.abc import Iterator

from afloc_jax.errors import UserError
from data_pipelines.builders.items import Item
from data_pipelines.builders.published import PublishedBuilder
from data_pipelines.builders.tables import Files
from data_pipelines.images import read_mask
from data_pipelines.regions import MaskFile

CLASSES = ("tumor epithelial tissue", "tumor-associated stroma tissue", "normal tissue")  # mask values 0, 1, 2
_LABELS = re.compile(r"\[([01])[, ]+([01])[, ]+([01])\]")
_PARTS = {"validation": "*validation", "test": "*testing"}


class Builder(PublishedBuilder):
    """Training patches with labels; validation and test fields with labels and masks."""

    FILES = (
        Files("*training/*.png", "patches, 1.training", 10091),
        Files("*validation/img/*.png", "fields, 2.validation"),
        Files("*validation/mask/*.png", "masks, 2.validation"),
        Files("*testing/img/*.png", "fields, 3.testing"),
        Files("*testing/mask/*.png", "masks, 3.testing"),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def cases(self) -> Iterator[Item]:
        """Patches, then fields, each in the order of their names."""
        for image in sorted(self.raw.glob("*training/*.png")):
            labels = _LABELS.search(image.name)
            if labels is None:
                raise UserError(f"{image.name}: a training patch must have its labels in its name, such as [1, 0, 0]")
            item = Item(f"train/{image.name}", image, split="train")
            item.labels = {name: int(value) for name, value in zip(CLASSES, labels.groups(), strict=True)}
            yield item
        for split, pattern in _PARTS.items():
            for image in sorted(self.raw.glob(f"{pattern}/img/*.png")):
                item = Item(f"{split}/{image.name}", image, split=split)
                mask = image.parent.parent / "mask" / image.name
                for value, name in enumerate(CLASSES):
                    present = bool(read_mask(mask, value).any())
                    item.labels[name] = int(present)
                    if present:
                        item.add(name, self.asked(name), MaskFile(mask, value))
                yield item
