"""The one record that every builder yields, whatever the data set.

Images are stored as raw one-channel uint8 bytes of the padded square (`image_size` x `image_size`): reading one
costs a memory copy, not a PNG decode. Masks are evaluation data, read rarely, and kept as PNG bytes of the same square.
What a data set does not have stays empty: text, labels, boxes, masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1  # values of a label; one that is not listed is unknown


@dataclass(frozen=True)
class Finding:
    """One annotated finding of a record.

    Attributes:
        label: class, e.g. "pleural effusion".
        prompt: the text that a model locates, e.g. "small left effusion". It may quote a report.
        png: PNG bytes of the mask in the padded square, 0 / 255.
        boxes: (x, y, width, height) in pixels of the original image; empty where the source drew no boxes.
        annotator: pseudonym of the reader where the source keeps its readers apart; else empty.
    """

    label: str
    prompt: str = field(repr=False)
    png: bytes = field(repr=False)
    boxes: tuple[tuple[float, ...], ...] = ()
    annotator: str = ""

    @property
    def mask(self) -> Bool[np.ndarray, "S S"]:
        """The pixels of the padded square that show the finding, decoded at each access."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.png, np.uint8), cv2.IMREAD_GRAYSCALE)) > 127


class EncodedRecord(TypedDict):
    """A record as `record_features` encodes it."""

    id: str
    image: bytes
    image_size: int
    original_height: int
    original_width: int
    patient: str
    study: str
    view: str
    sentences: list[str]
    impression_count: int
    sections: list[dict[str, str]]
    labels: list[dict[str, str | int]]
    findings: list[dict[str, str | bytes]]
    boxes: Float32[np.ndarray, "boxes 4"]
    box_findings: list[int]


def record_features() -> "tfds.features.FeaturesDict":
    """The TFDS feature specification shared by all builders."""
    import tensorflow_datasets as tfds  # takes a second, which the workers of a build need not spend

    text, integer = tfds.features.Text, np.int32
    return tfds.features.FeaturesDict(
        {
            "id": text(),  # unique within the data set, safe to print (never report text)
            "image": tfds.features.Scalar(dtype=np.object_),  # raw uint8 bytes, image_size * image_size
            "image_size": integer,
            "original_height": integer,
            "original_width": integer,
            "patient": text(),  # pseudonym of the patient; empty if unknown
            "study": text(),  # pseudonym of the study; empty if unknown
            "view": text(),
            "sentences": tfds.features.Sequence(text()),  # cleaned sentences in the order of the report
            "impression_count": integer,  # how many of the sentences belong to the impression (the leading ones)
            "sections": tfds.features.Sequence({"name": text(), "text": text()}),  # the report as written
            "labels": tfds.features.Sequence({"name": text(), "value": integer}),  # 1 present, 0 absent, -1 uncertain
            "findings": tfds.features.Sequence(  # evaluation only: one entry per annotated finding; may be empty
                {
                    "label": text(),
                    "prompt": text(),
                    "mask": tfds.features.Scalar(dtype=np.object_),  # PNG bytes, image_size x image_size, 0 / 255
                    "annotator": text(),
                }
            ),
            # (x, y, width, height) of all findings in original pixels, and the index of the finding of each.
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "box_findings": tfds.features.Sequence(integer),
        }
    )


def make_record(
    id: str,
    square: UInt8[np.ndarray, "S S"],
    height: int,
    width: int,
    *,
    patient: str = "",
    study: str = "",
    view: str = "",
    sentences: Sequence[str] = (),
    impression_count: int = 0,
    sections: Mapping[str, str] | None = None,
    labels: Mapping[str, int] | None = None,
    findings: Sequence[Finding] = (),
) -> EncodedRecord:
    """A record to be written; `square` is the padded image, `height` and `width` are the original's."""
    return EncodedRecord(
        id=id,
        image=square.tobytes(),
        image_size=square.shape[0],
        original_height=height,
        original_width=width,
        patient=patient,
        study=study,
        view=view,
        sentences=list(sentences),
        impression_count=impression_count,
        sections=[{"name": name, "text": text} for name, text in (sections or {}).items()],
        labels=[{"name": name, "value": value} for name, value in (labels or {}).items()],
        findings=[{"label": f.label, "prompt": f.prompt, "mask": f.png, "annotator": f.annotator} for f in findings],
        boxes=np.array([box for finding in findings for box in finding.boxes], np.float32).reshape(-1, 4),
        box_findings=[number for number, finding in enumerate(findings) for _ in finding.boxes],
    )
