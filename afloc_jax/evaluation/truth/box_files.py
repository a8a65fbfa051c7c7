"""Files of drawn boxes: a table like boxes.csv of `afloc localize`, or JSON {image: {phrase: [[x, y, w, h], ...]}}."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from afloc_jax import tables
from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Drawing, Truth
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json
from data_pipelines.images import LARGEST_PIXELS, Geometry

COLUMNS = ("image", "prompt", "x", "y", "width", "height")
OTHERS = ("present", "score", "mm_per_pixel_x", "mm_per_pixel_y", "sop_instance_uid")  # of boxes.csv, not read


class BoxFile:
    """Boxes in original pixels by image and phrase. A phrase that the file does not name has no box."""

    def __init__(self, path: str | Path) -> None:
        """Reads the file. Raises UserError for a malformed box, with its place and without its phrase."""
        self.path = Path(path)
        self._boxes: dict[tuple[str, str], list[tuple[float, ...]]] = {}
        if self.path.suffix.lower() == ".csv":
            for row in tables.read_table(self.path, COLUMNS, known=OTHERS).whole():
                sides: list[Json] = [row[name] for name in COLUMNS[2:]]
                self._add(row["image"], row["prompt"], sides, row.place)
        else:
            self._read(read_json(self.path, "give a file of boxes, see docs/protocols.md"))

    def _read(self, content: Json) -> None:
        if not (isinstance(content, Mapping) and all(isinstance(entry, Mapping) for entry in content.values())):
            raise UserError(f"{self.path}: boxes come as a .csv, or as JSON {{image: {{phrase: [[x, y, w, h], ...]}}}}")
        for number, (image, entry) in enumerate(content.items()):
            assert isinstance(entry, Mapping)
            for position, (phrase, boxes) in enumerate(entry.items()):
                where = f"{self.path.name}, image {number}, phrase {position}"
                if not isinstance(boxes, list):
                    raise UserError(f"{where}: its boxes must be a list of [x, y, width, height]")
                self._boxes.setdefault((image, phrase.lower()), [])
                for box in boxes:
                    self._add(image, phrase, box, where)

    def _add(self, image: str, phrase: str, given: Json, where: str) -> None:
        try:
            box = tuple(float(side) for side in given)  # type: ignore[union-attr, arg-type]
        except (TypeError, ValueError):
            box = ()
        if len(box) != 4 or not all(math.isfinite(s) and abs(s) < LARGEST_PIXELS for s in box) or min(box[2:]) <= 0:
            raise UserError(f"{where}: a box must be x, y, width, height in pixels, with a positive width and height")
        self._boxes.setdefault((image, phrase.lower()), []).append(box)

    def of(self, truth: Truth) -> Float[np.ndarray, "K 4"]:
        """The boxes of a sample in pixels of the square; in original pixels where the size of its image is unknown."""
        boxes = self._boxes.get((truth.image, truth.label_text.lower()), [])
        if truth.height:
            drawing = Drawing(boxes=True, size=truth.mask.shape[0])
            return np.array(
                drawing.squared(boxes, Geometry(truth.height, truth.width, drawing.size)), np.float64
            ).reshape(-1, 4)
        if boxes and truth.present:
            raise UserError(f"{self.path}: the truth does not tell the size of the image of {truth.id}")
        return np.array(boxes, np.float64).reshape(-1, 4)

    def unused(self, truths: list[Truth]) -> int:
        """The number of phrases with boxes that no sample asks. Raises UserError if no sample has a phrase here."""
        asked = {(truth.image, truth.label_text.lower()) for truth in truths}
        if self._boxes and not asked & self._boxes.keys():
            raise UserError(
                f"{self.path}: no image and phrase of it is in the truth; images must be named as there, and prompts "
                "be the phrases or classes of the truth"
            )
        return len(self._boxes.keys() - asked)
