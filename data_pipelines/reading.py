"""Random access to prepared records."""

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tensorflow_datasets.proto import tf_example_pb2

from afloc_jax.errors import UserError
from afloc_jax.files import Path, matching
from data_pipelines.records import Finding, Record, record_features

_REMEDY = "copy it back, or remove the folder and prepare again"


class Pair(NamedTuple):
    """The fields of a `Record` that a batch needs."""

    image: UInt8[np.ndarray, "S S"]
    sentences: list[str]
    impression_count: int


@runtime_checkable
class Records(Protocol):
    """The records of one split with random access: a `RecordSource`, or a list of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class RecordSource:
    """Random access to one split of a prepared data set: `len(source)`, `source[i]` -> Record. It can be pickled.

    Raises UserError, from the constructor if there is no such split, a file of it is missing or damaged, or the folder
    is of another version; when a record is read, if its file is damaged there.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str):
        self.folder, self.split = Path(folder), split
        builder = self._opened()
        splits = {name: info.num_examples for name, info in builder.info.splits.items() if info.num_examples}
        if split not in splits:
            known = ", ".join(f"{name} ({count})" for name, count in splits.items())
            raise UserError(f"no split {split!r} in {self.folder}; it has {known}")
        if set(builder.info.features) != set(record_features()):
            raise UserError(f"{self.folder} was prepared by another version of this program; prepare it again")
        lacking = [path for path in builder.info.splits[split].filepaths if not path.exists()]
        if lacking:
            raise UserError(f"{self.folder} lacks {lacking[0].name}; {_REMEDY}")
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._data = builder.as_data_source(split, deserialize_method=raw)
        for first in itertools.accumulate(builder.info.splits[split].shard_lengths[:-1], initial=0):
            self._example(first)  # a file that was cut is noticed now, and not in the middle of an epoch

    def _opened(self) -> tfds.core.DatasetBuilder:
        """The data set, from the folder alone, without the builder's code and arguments."""
        place = _versioned(self.folder)
        try:
            return tfds.builder_from_directory(place)
        except Exception as error:  # parsers of TFDS and protobuf raise errors of many kinds
            if isinstance(error, OSError):
                raise
            raise UserError(f"{place}: dataset_info.json or features.json is damaged; {_REMEDY}") from None

    @property
    def name(self) -> str:
        """The name of the builder."""
        return self.folder.name.rsplit("-", 2)[0]

    @property
    def content_hash(self) -> str:
        """The short hashes of builder arguments and raw files, which identify the records behind a result."""
        return "-".join(self.folder.name.rsplit("-", 2)[1:])

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        return _record(self._example(index))

    def pair(self, index: int) -> Pair:
        """The image and sentences of `self[index]`, in a third of the time."""
        features = _Features(self._example(index))
        return Pair(features.image(), features.texts("sentences"), features.numbers("impression_count")[0])

    def _example(self, index: int) -> bytes:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return self._data[index % len(self)]
        except RuntimeError:  # what ArrayRecord says quotes offsets, and no file
            raise UserError(f"{self.folder}: a file of split {self.split!r} is damaged; {_REMEDY}") from None

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


class _Features:
    """The features of a serialised `tf.train.Example` written with `records.record_features`.

    TFDS would turn each field into an array first, which takes more time than the rest of the pipeline together.
    """

    def __init__(self, example: bytes):
        self._features = tf_example_pb2.Example.FromString(example).features.feature

    def numbers(self, name: str) -> Sequence[int]:
        return self._features[name].int64_list.value

    def floats(self, name: str) -> Sequence[float]:
        return self._features[name].float_list.value

    def values(self, name: str) -> Sequence[bytes]:
        return self._features[name].bytes_list.value

    def texts(self, name: str) -> list[str]:
        return [value.decode("utf-8") for value in self.values(name)]

    def image(self) -> UInt8[np.ndarray, "S S"]:
        side = self.numbers("image_size")[0]
        return np.frombuffer(self.values("image")[0], np.uint8).reshape(side, side)


def _record(example: bytes) -> Record:
    features = _Features(example)
    numbers, texts = features.numbers, features.texts
    drawn: dict[int, list[tuple[float, ...]]] = {}
    corners = iter(features.floats("boxes"))
    for number, box in zip(numbers("box_findings"), zip(corners, corners, corners, corners, strict=True), strict=True):
        drawn.setdefault(number, []).append(box)
    columns = (
        texts("findings/label"),
        texts("findings/prompt"),
        features.values("findings/mask"),
        texts("findings/annotator"),
        texts("findings/runs") or [""] * len(features.values("findings/mask")),  # version 1.2.0 has none
    )
    return Record(
        id=texts("id")[0],
        image=features.image(),
        sentences=texts("sentences"),
        impression_count=numbers("impression_count")[0],
        patient=texts("patient")[0],
        view=texts("view")[0],
        height=numbers("original_height")[0],
        width=numbers("original_width")[0],
        findings=[
            Finding(label, prompt, png, tuple(drawn.get(number, ())), annotator, runs)
            for number, (label, prompt, png, annotator, runs) in enumerate(zip(*columns, strict=True))
        ],
        study=texts("study")[0],
        labels=dict(zip(texts("labels/name"), numbers("labels/value"), strict=True)),
        sections=dict(zip(texts("sections/name"), texts("sections/text"), strict=True)),
    )


def _versioned(folder: Path) -> str:
    """The folder inside `folder` that TFDS wrote, <name of the data set>/<version>."""
    written = matching(folder, "*/*/dataset_info.json")
    if len(written) != 1:
        raise UserError(f"{folder} is not a folder of prepared records; remove it and prepare again")
    return str(written[0].parent)
