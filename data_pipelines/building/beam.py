"""The same records built with Apache Beam on a cluster: `afloc prepare NAME --beam`, with the extra `beam`."""

import importlib
import json
import pickle
import shlex
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from afloc_jax.errors import UsageError
from afloc_jax.extras import install
from afloc_jax.files import Path, matching
from data_pipelines.building.decode import Decoding, boxes_outside, example, only_grey, rejection
from data_pipelines.building.items import Item
from data_pipelines.images import ImageError

if TYPE_CHECKING:
    import apache_beam  # only installed for builds on a cluster

Collection: TypeAlias = "apache_beam.PTransform"

_REJECTED, _NOTED = "rejected", "noted"
_FLAT, _BLACK = "flat", "black"
_ITEMS_A_FILE = 256  # items that a worker takes at a time


def pipeline_options(text: str) -> "apache_beam.options.pipeline_options.PipelineOptions":
    """Beam's options from a text such as "--runner=DirectRunner". Raises UsageError if Beam is not installed."""
    return _beam("options.pipeline_options").PipelineOptions(shlex.split(text))


def collection(items: Sequence[Item], how: Decoding, folder: Path) -> Collection:
    """A Beam transform that makes the records of the items.

    Unusable images give no record. Their ids and the reasons are written to text files in `folder`, which
    `read_rejected` reads; so are the numbers of boxes outside their image (`read_outside`), and flat and black images
    (`read_flat`, `read_black`). The items are written there as well, and the job contains only the names of these
    files: a job with the items would contain report text and be too large. Workers must have access to `folder`.
    """
    beam = _beam()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for start in range(0, len(items), _ITEMS_A_FILE):
        files.append(folder / f"items-{start:09d}.pickle")
        files[-1].write_bytes(pickle.dumps(list(enumerate(items[start : start + _ITEMS_A_FILE], start))))

    def records(file: str) -> Iterator[Any]:  # Beam reads these annotations when it runs
        for number, item in pickle.loads(Path(file).read_bytes()):  # trusted: written by this build
            result = example(item, how)
            if isinstance(result, ImageError):
                yield beam.pvalue.TaggedOutput(_REJECTED, json.dumps([item.id, rejection(item, result)]))
                continue
            if (value := only_grey(result)) is not None:
                yield beam.pvalue.TaggedOutput(_NOTED, json.dumps([item.id, _FLAT]))
            if value == 0:
                yield beam.pvalue.TaggedOutput(_NOTED, json.dumps([item.id, _BLACK]))
            if outside := boxes_outside(result):
                yield beam.pvalue.TaggedOutput(_NOTED, json.dumps([item.id, outside]))
            yield number, result.encoded()

    class Records(beam.PTransform):  # type: ignore[misc]
        def expand(self, pipeline: Any) -> Any:
            made = pipeline | beam.Create([str(file) for file in files]) | beam.Reshuffle()
            made = made | beam.FlatMap(records).with_outputs(_REJECTED, _NOTED, main="records")
            for name in (_REJECTED, _NOTED):
                _ = made[name] | f"write {name}" >> beam.io.WriteToText(str(folder / name))
            return made["records"]

    return Records()


def read_rejected(folder: Path) -> Iterator[tuple[str, str]]:
    """The id and the reason of each unusable image, from the `folder` of a `collection`."""
    for image, reason in _read(folder, _REJECTED):
        yield image, str(reason)


def read_outside(folder: Path) -> Iterator[tuple[str, int]]:
    """The id of each image with boxes outside of it, and their number, from the `folder` of a `collection`."""
    for image, outside in _read(folder, _NOTED):
        if isinstance(outside, int):
            yield image, outside


def read_flat(folder: Path) -> Iterator[str]:
    """The id of each image of one grey value, from the `folder` of a `collection`."""
    return (image for image, what in _read(folder, _NOTED) if what == _FLAT)


def read_black(folder: Path) -> Iterator[str]:
    """The id of each image of one grey value that is 0, from the `folder` of a `collection`."""
    return (image for image, what in _read(folder, _NOTED) if what == _BLACK)


def _read(folder: Path, name: str) -> Iterator[tuple[str, str | int]]:
    for path in matching(folder, f"{name}-*"):
        for line in path.read_text(encoding="utf-8").splitlines():
            image, about = json.loads(line)
            yield image, about


def _beam(module: str = "") -> ModuleType:
    try:
        return importlib.import_module(f"apache_beam.{module}".rstrip("."))
    except ImportError:
        raise UsageError(f"--beam needs Apache Beam; run: {install('beam')}") from None
