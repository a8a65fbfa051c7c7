"""Reading of truth files: COCO JSON of MS-CXR, RLE JSON of CheXlocalize, or a table of mask files.

Masks and boxes are mapped to the padded square that is scored. Sample ids consist of the image and a number, never of
the phrase, because phrases are quoted from reports and must not appear in messages.
"""

import sys

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.chexlocalize import is_rle_file, read_rle_table
from afloc_jax.evaluation.truth.coco import is_coco, read_coco
from afloc_jax.evaluation.truth.sample import Drawing, Truth
from afloc_jax.evaluation.truth.table import read_table
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json

DEFAULT = Drawing()


def read_truth(path: str | Path, drawing: Drawing = DEFAULT, *, negatives: bool = False) -> list[Truth]:
    """The samples of a truth file, in the order of the file. The format follows from the content.

    Boxes are scaled by one factor, shifted by the padding and floored, as published. A box thinner than a pixel of the
    square keeps one pixel; in compatible mode it vanishes, as in the release. A `segmentation` (RLE or polygon) is used
    instead of the box, unless it only repeats the box. A mask contains the pixels of the square of which at least half
    is covered; a smaller mask keeps the pixels that it covers most. In compatible mode masks are resized as by the
    release, see `Drawing.place`.

    A table is CSV with the columns image, mask and finding, and optionally prompt and patient. Masks are found beside
    the table or in its folder `masks`; a row without a mask is a negative. COCO JSON may give an image a `patient`.

    `negatives` keeps the entries that say that a finding is absent. Empty boxes of COCO JSON and empty mask files of a
    table are counted on stderr where they are left out.

    Raises UserError that names the missing, malformed or contradictory entry.
    """
    path = Path(path)
    by_design = False  # whether the file lists absent findings
    if path.suffix.lower() == ".csv":
        truths = read_table(path, drawing)
    else:
        content: Json = read_json(path, "give a truth file, see docs/protocols.md")
        if is_coco(content):
            truths = read_coco(path.name, content, drawing)
        elif is_rle_file(content):
            truths = read_rle_table(path.name, content, drawing)
            by_design = True
        else:
            raise UserError(
                f"{path}: neither COCO (images, annotations, categories) nor CheXlocalize segmentations "
                '({image: {class: {"size", "counts"}}}): give a truth file of one of these formats, or a CSV'
            )
    if not any(truth.present for truth in truths):
        raise UserError(f"{path}: no annotated finding in this truth file, nothing to score")
    absent = sum(not truth.present and truth.height > 0 for truth in truths)  # without those that name no mask
    if absent and not by_design and not negatives:
        what = f"{absent} of {len(truths)} samples of {path.name} have no region"
        print(f"afloc: {what} and are left out; --protocol generalised scores them", file=sys.stderr)
    return [truth for truth in truths if truth.present or negatives]
