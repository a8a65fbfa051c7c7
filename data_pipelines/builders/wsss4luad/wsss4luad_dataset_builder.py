"""WSSS4LUAD: tissue of lung adenocarcinoma, labels of patches and masks of larger fields. See docs/datasets."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.images import ImageError, read_label_image
from data_pipelines.regions import MaskFile

# In the order of the labels in the names of the patches, and of the values 0, 1, 2 of the masks; 3 is background.
PHRASES = {"tumor": "tumor epithelial tissue", "stroma": "tumor-associated stroma", "normal": "normal tissue"}
_BACKGROUND = 3
_LABELS = re.compile(r"\[([01])[, _]+([01])[, _]+([01])\]")
_PARTS = {"validation": "*validation", "test": "*testing"}


class Builder(PublishedBuilder):
    """Training patches with labels, and validation and test fields with labels and masks. Text is made from labels."""

    FILES = (
        Files("*training/*.png", "patches, 1.training", 10091),
        Files("*validation/img/*.png", "fields, 2.validation", 40),
        Files("*validation/mask/*.png", "masks, 2.validation", 40),
        Files("*testing/img/*.png", "fields, 3.testing", 80),
        Files("*testing/mask/*.png", "masks, 3.testing", 80),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def cases(self) -> Iterator[Item]:
        """Patches, then fields, each in the order of their names."""
        for image in sorted(self.raw.glob("*training/*.png")):
            labels = _LABELS.search(image.name)
            item = Item(f"train/{image.name}", image, split="train")
            if labels is None:
                item.reject("a training patch must have its labels in its name, such as [1, 0, 0]")
                yield item
                continue
            item.labels = {name: int(value) for name, value in zip(PHRASES, labels.groups(), strict=True)}
            self._add_text(item)
            yield item
        for split, pattern in _PARTS.items():
            for image in sorted(self.raw.glob(f"{pattern}/img/*.png")):
                mask = image.parent.parent / "mask" / image.name
                if not mask.is_file():
                    self.lack(mask, "mask not there")
                    continue
                item = Item(f"{split}/{image.name}", image, split=split)
                try:
                    self._add_tissues(item, mask)
                except ImageError as error:
                    item.reject(str(error).removeprefix(f"{mask.name}: "))
                yield item

    def _add_tissues(self, item: Item, mask: Path) -> None:
        """Adds labels, findings and text for the tissues in the mask."""
        values = set(np.unique(read_label_image(mask)).tolist())
        if not values <= {*range(len(PHRASES)), _BACKGROUND}:
            raise ImageError("its mask has values other than 0, 1, 2, 3")
        for value, (name, phrase) in enumerate(PHRASES.items()):
            item.labels[name] = int(value in values)
            if value in values:
                item.add(name, self.prompt_for(phrase), MaskFile(mask, value))
        self._add_text(item)

    def _add_text(self, item: Item) -> None:
        labels = item.labels.items()
        sentences = (f"there is {PHRASES[name]}" if value else f"no {PHRASES[name]}" for name, value in labels)
        self.set_report(item, ". ".join(sentences))
