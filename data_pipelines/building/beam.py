"""The same records built with Apache Beam on a cluster: `afloc prepare NAME --beam`, see requirements-beam.txt."""

import importlib
import json
import pickle
import shlex
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from afloc_jax.errors import UsageError
from afloc_jax.files import Path, matching
from data_pipelines.building.decode import example, rejection
from data_pipelines.building.items import Item
from data_pipelines.images import ImageError

if TYPE_CHECKING:
    import apache_beam  # which only those install who build on a cluster

Collection: TypeAlias = "apache_beam.PTransform"

_REJECTED = "rejected"
_ITEMS_A_FILE = 256  # what a worker takes at a time


def pipeline_options(text: str) -> "apache_beam.options.pipeline_options.PipelineOptions":
    """Beam's own options from a command line such as "--runner=DirectRunner". Raises UsageError without Beam."""
    return _beam("options.pipeline_options").PipelineOptions(shlex.split(text))


def collection(items: Sequence[Item], image_size: int, seed: int, folder: Path) -> Collection:
    """A Beam transform that makes the records of the items.

    Unusable images give none: their ids and what is wrong with them go into text files in `folder`, which
    `read_rejected` reads. The items are written there too, and the job names only these files: a job that held the
    items would hold report text and be too large for a cluster. Workers must reach `folder` as they reach the records.
    """
    beam = _beam()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for start in range(0, len(items), _ITEMS_A_FILE):
        files.append(folder / f"items-{start:09d}.pickle")
        files[-1].write_bytes(pickle.dumps(list(enumerate(items[start : start + _ITEMS_A_FILE], start))))
    rejected = folder / _REJECTED

    def records(file: str) -> Iterator[Any]:  # Beam reads these annotations when it runs
        for number, item in pickle.loads(Path(file).read_bytes()):  # written by this build, below its own folder
            result = example(item, image_size, seed)
            if isinstance(result, ImageError):
                yield beam.pvalue.TaggedOutput(_REJECTED, json.dumps([item.id, rejection(item, result)]))
            else:
                yield number, result.encoded()

    class Records(beam.PTransform):  # type: ignore[misc]
        def expand(self, pipeline: Any) -> Any:
            made = pipeline | beam.Create([str(file) for file in files]) | beam.Reshuffle()
            made = made | beam.FlatMap(records).with_outputs(_REJECTED, main="records")
            _ = made[_REJECTED] | beam.io.WriteToText(str(rejected))
            return made["records"]

    return Records()


def read_rejected(folder: Path) -> Iterator[tuple[str, str]]:
    """Id and reason of each unusable image of the `collection` that wrote into this folder."""
    for path in matching(folder, f"{_REJECTED}-*"):
        for line in path.read_text(encoding="utf-8").splitlines():
            image, reason = json.loads(line)
            yield image, reason


def _beam(module: str = "") -> ModuleType:
    try:
        return importlib.import_module(f"apache_beam.{module}".rstrip("."))
    except ImportError:
        raise UsageError("--beam needs Apache Beam; run: pip install -r requirements-beam.txt") from None
