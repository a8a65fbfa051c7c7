"""The same records with Apache Beam, for clusters: requirements-beam.txt, then `afloc prepare NAME --beam`."""

import importlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from afloc_jax.errors import UsageError
from data_pipelines.builders.decode import example, rejection
from data_pipelines.builders.items import Item
from data_pipelines.images import ImageError

_REJECTED = "rejected"


def pipeline_options(text: str) -> Any:
    """Beam's own options from a command line such as "--runner=DirectRunner". Raises UsageError without Beam."""
    return _beam("options.pipeline_options").PipelineOptions(shlex.split(text))


def collection(items: Sequence[Item], image_size: int, seed: int, rejected: Path) -> Any:
    """A Beam transform that makes the records of the items.

    Unusable images give none. Their ids and what is wrong with them go into text files whose names begin with
    `rejected`, which workers must reach as they reach the records; `read_rejected` reads them.
    """
    beam = _beam()

    def records(numbered: tuple[int, Item]) -> Iterator[Any]:
        number, item = numbered
        result = example(item, image_size, seed)
        if isinstance(result, ImageError):
            yield beam.pvalue.TaggedOutput(_REJECTED, json.dumps([item.id, rejection(item, result)]))
        else:
            yield number, result

    class Records(beam.PTransform):  # type: ignore[misc]
        def expand(self, pipeline: Any) -> Any:
            made = pipeline | beam.Create(list(enumerate(items)))
            made = made | beam.FlatMap(records).with_outputs(_REJECTED, main="records")
            _ = made[_REJECTED] | beam.io.WriteToText(str(rejected))
            return made["records"]

    return Records()


def read_rejected(rejected: Path) -> Iterator[tuple[str, str]]:
    """Id and reason of each unusable image of one `collection`."""
    for path in sorted(rejected.parent.glob(f"{rejected.name}-*")):
        yield from (tuple(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


def _beam(module: str = "") -> Any:
    try:
        return importlib.import_module(f"apache_beam.{module}".rstrip("."))
    except ImportError:
        raise UsageError("--beam needs Apache Beam; run: pip install -r requirements-beam.txt") from None
