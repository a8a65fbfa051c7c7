"""Records from items: the image and its regions are decoded, checked and mapped to the square."""

from functools import reduce

import numpy as np

from data_pipelines.building.items import AnnotatedFinding, Item, pseudonym
from data_pipelines.images import Geometry, ImageError, encode_png, read_image
from data_pipelines.records import Finding, Record
from data_pipelines.regions import Box, MaskFile, RelativeBox, run_lengths
from data_pipelines.slides import read_slide


def example(item: Item, image_size: int, seed: int) -> Record | ImageError:
    """The record of an item. An ImageError is returned, not raised, so that it passes between threads as a value."""
    if item.fault:
        return ImageError(item.fault)
    try:
        image = read_slide(item.image, image_size) if item.slide else read_image(item.image)
        geometry = Geometry(image.shape[0], image.shape[1], image_size)
        findings = [_finding(finding, geometry) for finding in item.findings]
    except ImageError as error:
        return error
    return Record(
        id=item.id,
        image=geometry.to_square(image),
        sentences=item.sentences,
        impression_count=item.impression_count,
        patient=pseudonym(item.patient, seed),
        view=item.view,
        height=geometry.height,
        width=geometry.width,
        findings=findings,
        study=pseudonym(item.study, seed),
        labels=item.labels,
        sections=item.sections,
    )


def rejection(item: Item, error: ImageError) -> str:
    """The reason why an item has no record, without the name of its image, which the account states itself."""
    return str(error).removeprefix(f"{item.image.name}: ")


def _finding(finding: AnnotatedFinding, geometry: Geometry) -> Finding:
    size = (geometry.height, geometry.width)
    regions = [r.box(*size) if isinstance(r, RelativeBox) else r for r in finding.regions]
    boxes = [region for region in regions if isinstance(region, Box)]
    masks = [region.mask(*size) for region in regions]
    united = reduce(np.logical_or, masks)
    if not united.any():
        names = ", ".join(region.path.name for region in regions if isinstance(region, MaskFile))
        raise ImageError(f"{names}: the mask is empty" if names else "the mask of a finding is empty")
    if len(boxes) == len(regions):  # only boxes: they are rounded as in the published scores
        square = reduce(np.logical_or, [box.on_square(geometry) for box in boxes])
    else:
        square = geometry.mask_to_square(united)
    xywh = tuple(box.xywh for box in boxes)
    runs = "" if len(boxes) == len(regions) else run_lengths(united)
    return Finding(finding.label, finding.prompt, encode_png(square), xywh, finding.annotator, runs)
