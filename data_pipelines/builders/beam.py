"""The same records with Apache Beam, for clusters: requirements-beam.txt, then `afloc prepare NAME --beam`."""

import importlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from afloc_jax.errors import UsageError
from data_pipelines.builders.decode import example
from data_pipelines.builders.items import Item
from data_pipelines.images import ImageError


def pipeline_options(text: str) -> Any:
    """Beam's own options from a command line such as "--runner=DirectRunner". Raises UsageError without Beam."""
    return _beam("options.pipeline_options").PipelineOptions(shlex.split(text))


def collection(items: Sequence[Item], image_size: int, seed: int) -> Any:
    """A Beam transform that makes the records of the items; unusable images give none."""
    beam = _beam()

    def records(numbered: tuple[int, Item]) -> Iterator[tuple[int, dict[str, Any]]]:
        number, item = numbered
        result = example(item, image_size, seed)
        if not isinstance(result, ImageError):
            yield number, result

    return beam.Create(list(enumerate(items))) | beam.FlatMap(records)


def _beam(module: str = "") -> Any:
    try:
        return importlib.import_module(f"apache_beam.{module}".rstrip("."))
    except ImportError:
        raise UsageError("--beam needs Apache Beam; run: pip install -r requirements-beam.txt") from None
