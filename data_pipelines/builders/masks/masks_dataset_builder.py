"""A folder of images and lesion masks for evaluation, with a table of one row per mask.

All masks of one finding on one image are one sample. Images without a row are kept, without a finding.
"""

from collections.abc import Mapping
from typing import Any

from afloc_jax.errors import UserError
from data_pipelines.building.ingest import FolderBuilder
from data_pipelines.building.items import Item
from data_pipelines.building.splits import assign_splits
from data_pipelines.constants import CLASS_PROMPT
from data_pipelines.images import IMAGE_SUFFIXES
from data_pipelines.regions import MaskFile

_PURPOSE = "a row needs an image, a mask file and the name of the finding"


class Builder(FolderBuilder):
    """Images with lesion masks.

    Args:
        csv: the table of masks inside the raw folder.
        images, masks: the folders of the files that the table names.
        image_column, mask_column, finding_column: the columns of the table.
        images_csv: an optional table with a row per image (column `image_column`, optionally `patient` and `view`).
        prompt: the prompt of a finding; "{finding}" is replaced by its name.
        prompts: finding -> prompt, for findings with a prompt of their own.
        fractions: the share of patients in each split.
        raw, image_size, seed, max_bad_fraction, workers, journal, beam, exclude: see FolderBuilder.
    """

    def __init__(
        self,
        *,
        csv: str = "lesions.csv",
        images: str = "images",
        masks: str = "masks",
        image_column: str = "image",
        mask_column: str = "mask",
        finding_column: str = "finding",
        images_csv: str = "images.csv",
        prompt: str = CLASS_PROMPT,
        prompts: Mapping[str, str] | None = None,
        fractions: Mapping[str, float] | None = None,
        **kwargs: Any,
    ):
        self.csv, self.images, self.masks, self.images_csv = csv, images, masks, images_csv
        self.image_column, self.mask_column, self.finding_column = image_column, mask_column, finding_column
        self.prompt, self.prompts = prompt, dict(prompts or {})
        self.fractions = dict(fractions) if fractions else {"test": 1.0}
        super().__init__(**kwargs)

    def items(self) -> list[Item]:
        """One item per image, in the order of their names."""
        columns = (self.image_column, self.mask_column, self.finding_column)
        rows = self.read_table(self.raw / self.csv, columns, _PURPOSE, names=columns[:2], of_images=columns[0])
        folder = self.raw / self.images
        if not folder.is_dir():
            raise UserError(f"no folder {self.images} in {self.raw}; it must hold the images that {self.csv} names")
        table, about = self.raw / self.images_csv, {}
        if self.images_csv and table.is_file():
            unique = (self.image_column,)
            about = {row[unique[0]]: row for row in self.read_table(table, unique, "a row per image", unique=unique)}
        present = {path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        names = sorted(present | {row[self.image_column] for row in rows if row[self.image_column]})
        items = {}
        for number, name in enumerate(names, start=1):
            patient, view = (about[name].get(column, "") if name in about else "" for column in ("patient", "view"))
            items[name] = Item(name, folder / name, patient, view, place=f"image {number:,} by name")
        self.account.rows = len(items)
        for row in rows:
            if row[self.image_column] and row[self.mask_column] and row[self.finding_column]:
                label = row[self.finding_column]
                prompt = self.prompts.get(label, self.prompt.replace("{finding}", label))
                region = MaskFile(self.raw / self.masks / row[self.mask_column])
                items[row[self.image_column]].add(label, prompt, region)
                items[row[self.image_column]].place = row.place
            else:
                self.account.dropped["row without image, mask or finding"] += 1
        kept = self.not_excluded(list(items.values()))
        assign_splits(kept, self.fractions, self.seed, self.workers)
        return kept
