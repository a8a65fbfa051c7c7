"""An evaluation that several processes share. Each does every n-th batch, and all of them get the results of all.

With one process nothing is exchanged. With several, all must call the functions of this file equally often.
"""

import itertools
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Item = TypeVar("Item")

# JAX's own waits would end the processes after some minutes. One process may be that much slower than another.
_MILLISECONDS = 7 * 24 * 3600 * 1000
_calls = itertools.count()  # the same on all processes


def is_own(number: int) -> bool:
    """Whether the batch of this number is this process's to do."""
    return bool(number % jax.process_count() == jax.process_index())


def own_items(items: Iterable[Item]) -> Iterator[Item | None]:
    """The items that are this process's to score, and None for the others."""
    for number, item in enumerate(items):
        yield item if is_own(number) else None


def gathered(results: Sequence[Item | None]) -> list[Item]:
    """The results of all processes, in order. Each passes its own ones, and None for those of the others."""
    parts = [results]
    if jax.process_count() > 1:
        wait_for_all(f"gathered {next(_calls)}")
        packed = np.frombuffer(pickle.dumps(results), np.uint8)
        sizes = multihost_utils.process_allgather(np.array(len(packed))).reshape(-1)
        padded = multihost_utils.process_allgather(np.pad(packed, (0, int(sizes.max()) - len(packed))))
        parts = [pickle.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]
    return [next(result for result in several if result is not None) for several in zip(*parts, strict=True)]


def of_first(value: Item) -> Item:
    """The value that process 0 passes."""
    return gathered([(value,) if jax.process_index() == 0 else None])[0][0]


def wait_for_all(name: str) -> None:
    """Waits until every process is here, which takes as long as it takes and uses no device. Names are used once."""
    if jax.process_count() > 1:
        from orbax.checkpoint.multihost import get_barrier_sync_fn  # which inference need not import

        get_barrier_sync_fn()(key=name, timeout_ms=_MILLISECONDS)
