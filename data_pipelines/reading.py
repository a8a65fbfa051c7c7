"""Prepared records, read at random."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import ArrayLike, NDArray

from afloc_jax.errors import UserError
from data_pipelines.images import Geometry
from data_pipelines.records import record_features


@dataclass(frozen=True)
class Finding:
    """One annotated finding of a record."""

    label: str
    prompt: str = field(repr=False)  # may quote a report
    png: bytes = field(repr=False)
    boxes: tuple[tuple[float, ...], ...] = ()  # (x, y, width, height) in original pixels, where the source drew boxes
    annotator: str = ""  # where the source keeps its readers apart

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[S, S] bool in the padded square, decoded at each access."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.png, np.uint8), cv2.IMREAD_GRAYSCALE)) > 127


@dataclass(frozen=True)
class Record:
    """One image with its report and findings. Its repr shows no report text."""

    id: str
    image: NDArray[np.uint8] = field(repr=False)  # [S, S], the padded square; read only
    sentences: list[str] = field(repr=False)
    impression_count: int
    patient: str  # pseudonym, empty if unknown
    view: str
    height: int  # of the original image, pixels
    width: int
    findings: list[Finding]
    study: str = ""  # pseudonym, empty if unknown
    labels: dict[str, int] = field(default_factory=dict)  # 1 present, 0 absent, -1 uncertain; not listed: unknown
    sections: dict[str, str] = field(default_factory=dict, repr=False)  # of the report, as written

    @property
    def geometry(self) -> Geometry:
        """Map between the original image and the stored square."""
        return Geometry(self.height, self.width, self.image.shape[0])


class RecordSource:
    """Random access to one split of a prepared data set: `len(source)`, `source[i]` -> Record. Can be pickled."""

    def __init__(self, folder: Path, split: str):
        self.folder, self.split = Path(folder), split
        # From the folder alone, so that reading needs neither the builder's code nor its arguments.
        builder = tfds.builder_from_directory(_versioned(self.folder))
        splits = {name: info.num_examples for name, info in builder.info.splits.items() if info.num_examples}
        if split not in splits:
            found = ", ".join(f"{name} ({count})" for name, count in splits.items())
            raise UserError(f"no split {split!r} in {self.folder}; it has {found}")
        if set(builder.info.features) != set(record_features()):
            raise UserError(f"{self.folder} was prepared by another version of this program; prepare it again")
        self._data = builder.as_data_source(split)

    @property
    def name(self) -> str:
        """Name of the builder."""
        return self.folder.name.rsplit("-", 2)[0]

    @property
    def content_hash(self) -> str:
        """Names the records: builder arguments and raw files. For the account of where a number came from."""
        return "-".join(self.folder.name.rsplit("-", 2)[1:])

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        raw = self._data[index % len(self)]
        side = int(raw["image_size"])
        return Record(
            id=_text(raw["id"]),
            image=np.frombuffer(raw["image"], np.uint8).reshape(side, side),
            sentences=[_text(sentence) for sentence in raw["sentences"]],
            impression_count=int(raw["impression_count"]),
            patient=_text(raw["patient"]),
            view=_text(raw["view"]),
            height=int(raw["original_height"]),
            width=int(raw["original_width"]),
            findings=_findings(raw["findings"], raw["boxes"], raw["box_findings"]),
            study=_text(raw["study"]),
            labels={_text(name): int(value) for name, value in _rows(raw["labels"], "name", "value")},
            sections={_text(name): _text(text) for name, text in _rows(raw["sections"], "name", "text")},
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def texts(self) -> Iterator[str]:
        """All sentences of each record joined by ". ": what a vocabulary is learned from."""
        return (". ".join(record.sentences) for record in self)


def _findings(findings: Mapping[str, Any], boxes: ArrayLike, numbers: Sequence[int]) -> list[Finding]:
    drawn: dict[int, list[tuple[float, ...]]] = {}
    for number, box in zip(numbers, np.asarray(boxes).reshape(-1, 4).tolist(), strict=True):
        drawn.setdefault(int(number), []).append(tuple(box))
    return [
        Finding(_text(label), _text(prompt), png, tuple(drawn.get(number, ())), _text(annotator))
        for number, (label, prompt, png, annotator) in enumerate(
            _rows(findings, "label", "prompt", "mask", "annotator")
        )
    ]


def _rows(columns: Mapping[str, Any], *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(columns[name] for name in names), strict=True)


def _versioned(folder: Path) -> str:
    found = sorted(folder.glob("*/*/dataset_info.json"))
    if len(found) != 1:
        raise UserError(f"{folder} is not a folder of prepared records; remove it and prepare again")
    return str(found[0].parent)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
