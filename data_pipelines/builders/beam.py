"""The same records with Apache Beam, for clusters: requirements-beam.txt, then `afloc prepare NAME --beam`."""

from collections.abc import Iterator, Sequence
from typing import Any

from afloc_jax.errors import UsageError
from data_pipelines.builders.decode import example
from data_pipelines.builders.items import Item
from data_pipelines.images import ImageError


def collection(items: Sequence[Item], image_size: int, seed: int) -> Any:
    """A Beam transform that makes the records of the items; unusable images give none."""
    try:
        import apache_beam
    except ImportError:
        raise UsageError("--beam needs Apache Beam; run: pip install -r requirements-beam.txt") from None

    def records(numbered: tuple[int, Item]) -> Iterator[tuple[int, dict[str, Any]]]:
        number, item = numbered
        result = example(item, image_size, seed)
        if not isinstance(result, ImageError):
            yield number, result

    return apache_beam.Create(list(enumerate(items))) | apache_beam.FlatMap(records)
