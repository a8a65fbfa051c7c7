"""Places of findings from a file: COCO JSON as in MS-CXR, RLE JSON as in CheXlocalize, or a table of mask files.

Everything is brought to the padded square on which scores are taken. Sample ids name an image and a count, never the
phrase: phrases are taken from reports and must not appear in a message.
"""

from dataclasses import replace

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.chexlocalize import is_rle_file, read_rle_table
from afloc_jax.evaluation.truth.coco import is_coco, read_coco
from afloc_jax.evaluation.truth.sample import Truth, boxes_of
from afloc_jax.evaluation.truth.table import read_table
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json
from data_pipelines.constants import IMAGE_SIZE


def read_truth(
    path: str | Path, size: int = IMAGE_SIZE, compatible: bool = False, *, negatives: bool = False, boxes: bool = False
) -> list[Truth]:
    """Read a truth file of any format; the content decides which. Samples come in the order of the file.

    Boxes are scaled by one factor, shifted by the padding and floored, as published. A box thinner than a pixel of the
    square keeps one pixel; in compatible mode it vanishes, as in the release. A `segmentation` (RLE or polygon) is used
    instead of the box unless it only repeats it. Masks cover the pixels of the square that they cover by half or more,
    and one too small for that keeps what it covers most; compatible: as the release resized them, see `mask_on_square`.

    A table is CSV with the columns image, mask and finding, and optionally prompt and patient. Masks are found beside
    the table or in its folder `masks`; a row without a mask is a negative. COCO JSON may give an image a `patient`.

    Args:
        size: side of the padded square, pixels.
        negatives: keep the entries that say that a finding is absent (RLE JSON and tables).
        boxes: where an annotation has a box and a segmentation, take the box; where it has a mask only, the boxes
            around its connected parts.

    Raises `UserError` naming the entry that is missing, malformed or contradictory.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        truths = _as_boxes(read_table(path, size, compatible), boxes)
    else:
        content: Json = read_json(path, "give a truth file, see docs/protocols.md")
        if is_coco(content):
            truths = read_coco(path.name, content, size, compatible, boxes)
        elif is_rle_file(content):
            truths = _as_boxes(read_rle_table(path.name, content, size, compatible), boxes)
        else:
            raise UserError(
                f"{path}: neither COCO (images, annotations, categories) nor CheXlocalize segmentations "
                '({image: {class: {"size", "counts"}}}): give a truth file of one of these formats, or a CSV'
            )
    if not any(truth.present for truth in truths):
        raise UserError(f"{path}: no annotated finding in this truth file, nothing to score")
    return [truth for truth in truths if truth.present or negatives]


def _as_boxes(truths: list[Truth], boxes: bool) -> list[Truth]:
    return [replace(truth, mask=boxes_of(truth.mask)) for truth in truths] if boxes else truths
