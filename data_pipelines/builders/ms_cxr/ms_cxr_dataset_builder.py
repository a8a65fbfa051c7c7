"""MS-CXR: phrases of reports with boxes on images of MIMIC-CXR-JPG. See docs/datasets/ms_cxr.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data_pipelines.builders.ms_cxr.annotations import FILE, read_annotations
from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.regions import Box


class Builder(PublishedBuilder):
    """One record per image and one finding per phrase, which may have several boxes.

    Images may be resized copies: boxes are scaled from the width and height that the file of boxes states.

    Args:
        images: the folder of MIMIC-CXR-JPG that holds files/p10/...; empty for the raw folder.
        prompts: "phrases" for the annotated phrases, or "classes" for prompts from `prompt` and the category.
    """

    FILES = (Files(FILE, "boxes and phrases, COCO JSON"),)
    FOLDERS = ("images",)

    def __init__(self, *, images: str = "", prompts: Literal["phrases", "classes"] = "phrases", **kwargs):
        self.images, self.prompts = images, prompts
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """Annotated images in the order of the file."""
        folder = Path(self.images) if self.images else self.raw
        items: dict[str, Item] = {}
        for annotation in read_annotations(self.raw):
            path = annotation.path
            if path not in items:
                parts = Path(path).parts
                items[path] = Item(path, folder / path, parts[-3].removeprefix("p"), study=parts[-2].removeprefix("s"))
                items[path].place = annotation.place
            items[path].annotated_size = annotation.size
            items[path].reject(annotation.fault)
            if annotation.fault:
                continue
            prompt = annotation.phrase if self.prompts == "phrases" else self.prompt_for(annotation.category)
            items[path].add(annotation.category, prompt, Box(*annotation.box))
            items[path].labels[annotation.category.lower()] = 1
        yield from items.values()
