"""The record that the builders of all data sets yield.

Images are stored as raw uint8 bytes of the padded square (`image_size` x `image_size`, one channel), so that reading
needs no decoding. Masks are read rarely, for evaluation, and are stored as PNG bytes of the same square. Fields that a
data set does not have (text, labels, boxes, masks) are empty.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines.images import Geometry

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

Encoded: TypeAlias = dict[str, str | int | bytes | list | np.ndarray]
"""A record as TFDS writes it."""

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1  # values of a label; unknown labels are not listed


@dataclass(frozen=True)
class Finding:
    """One annotated finding of a record.

    Attributes:
        label: the class, e.g. "pleural effusion".
        prompt: the text to localise, e.g. "small left effusion". It may quote a report.
        png: PNG bytes of the mask in the padded square, 0 / 255.
        boxes: (x, y, width, height) in pixels of the original image; empty where the data set has no boxes.
        annotator: a pseudonym of the annotator; empty where the data set does not name annotators.
        runs: the mask in pixels of the original image, as COCO's compressed run lengths; empty where the finding is
            boxes alone, where the square is the original, and in records of earlier versions.
    """

    label: str
    prompt: str = field(repr=False)
    png: bytes = field(repr=False)
    boxes: tuple[tuple[float, ...], ...] = ()
    annotator: str = ""
    runs: str = field(default="", repr=False)

    @property
    def mask(self) -> Bool[np.ndarray, "S S"]:
        """The mask of the finding in the padded square, decoded at each access."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.png, np.uint8), cv2.IMREAD_GRAYSCALE)) > 127


@dataclass(frozen=True)
class Record:
    """One image with its report and findings. Its repr does not show report text."""

    id: str
    image: UInt8[np.ndarray, "S S"] = field(repr=False)  # the padded square; read only
    sentences: list[str] = field(repr=False)
    impression_count: int
    patient: str  # pseudonym, empty if unknown
    view: str
    height: int  # the original image's, in pixels
    width: int
    findings: list[Finding]
    study: str = ""  # pseudonym, empty if unknown
    labels: dict[str, int] = field(default_factory=dict)  # 1 present, 0 absent, -1 uncertain; unknown ones are missing
    sections: dict[str, str] = field(default_factory=dict, repr=False)  # section of the report -> its original text

    @property
    def geometry(self) -> Geometry:
        """The mapping between the original image and the stored square."""
        return Geometry(self.height, self.width, self.image.shape[0])

    def encoded(self) -> Encoded:
        """The record as features of `record_features`."""
        findings, boxes = self.findings, [box for finding in self.findings for box in finding.boxes]
        return {
            "id": self.id,
            "image": self.image.tobytes(),
            "image_size": self.image.shape[0],
            "original_height": self.height,
            "original_width": self.width,
            "patient": self.patient,
            "study": self.study,
            "view": self.view,
            "sentences": self.sentences,
            "impression_count": self.impression_count,
            "sections": [{"name": name, "text": text} for name, text in self.sections.items()],
            "labels": [{"name": name, "value": value} for name, value in self.labels.items()],
            "findings": [
                {"label": f.label, "prompt": f.prompt, "mask": f.png, "annotator": f.annotator, "runs": f.runs}
                for f in findings
            ],
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "box_findings": [number for number, finding in enumerate(findings) for _ in finding.boxes],
        }


def record_features() -> "tfds.features.FeaturesDict":
    """The TFDS feature specification of all builders."""
    import tensorflow_datasets as tfds  # imported here, because it takes a second that workers can save

    text, integer = tfds.features.Text, np.int32
    return tfds.features.FeaturesDict(
        {
            "id": text(),  # unique within the data set; it contains no report text and may be printed
            "image": tfds.features.Scalar(dtype=np.object_),  # raw uint8 bytes, image_size * image_size
            "image_size": integer,
            "original_height": integer,
            "original_width": integer,
            "patient": text(),  # pseudonym of the patient; empty if unknown
            "study": text(),  # pseudonym of the study; empty if unknown
            "view": text(),
            "sentences": tfds.features.Sequence(text()),  # cleaned sentences in the order of the report
            "impression_count": integer,  # the number of leading sentences that belong to the impression
            "sections": tfds.features.Sequence({"name": text(), "text": text()}),  # the original report
            "labels": tfds.features.Sequence({"name": text(), "value": integer}),  # 1 present, 0 absent, -1 uncertain
            "findings": tfds.features.Sequence(  # one entry per annotated finding, for evaluation
                {
                    "label": text(),
                    "prompt": text(),
                    "mask": tfds.features.Scalar(dtype=np.object_),  # PNG bytes, image_size x image_size, 0 / 255
                    "annotator": text(),
                    "runs": text(),  # run lengths of the mask on the original image; empty if it is boxes alone
                }
            ),
            # (x, y, width, height) of all findings in original pixels, and the index of the finding of each.
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "box_findings": tfds.features.Sequence(integer),
        }
    )
