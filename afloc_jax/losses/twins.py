"""Which pairs of a batch have the same text, by the hashes of their texts. definition.py says what follows from it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from afloc_jax.levels import TextHashes
from afloc_jax.losses.definition import identical, share_a_sentence
from afloc_jax.losses.ring import GROUP, PAIRS, RING, Ring, gathered, place, sharded


class Twins(NamedTuple):
    """Which of the K pairs of its contrast group are twins of each pair, itself among them, by kind.

    "local" is for the word and sentence level: the reports share a sentence. "report" is for the report level: they
    have the same text. `shares` has the share of twins among the pairs of two that are contrasted with each other; it
    is 0 where there are none.
    """

    pairs: dict[str, Bool[Array, "B K"]]
    shares: dict[str, Float[Array, ""]]


def find_twins(hashes: TextHashes, included: Bool[Array, " B"], group: int, around: Ring | None = None) -> Twins:
    """The twins of a batch.

    Args:
        hashes: of the texts as drawn.
        included: the pairs that are contrasted at all.
        group: K, the pairs contrasted with each other.
        around: the ring of devices that the batch is split over.
    """

    def rows(hashes: TextHashes, included: Bool[Array, " b"]) -> tuple[Array, Array, Array]:
        """Both kinds [b, K] for the pairs of one device, and the numbers of twins, and of all, among pairs of two."""
        k = group if around is None else min(len(included), group)
        own = jax.tree.map(lambda array: array.reshape(-1, k, *array.shape[1:]), (hashes, included))
        # Hashes are few bytes. A loop around the ring would save memory, but its sends could meet other collectives in
        # another order on every device, which stops CPUs.
        everyone = own if around is None else jax.tree.map(lambda array: gathered(array, around), own)
        local = share_a_sentence(own[0].sentences, everyone[0].sentences)
        whole = identical(own[0].report, everyone[0].report)
        first = 0 if around is None else k * place(around)
        different = first + jnp.arange(k)[:, None] != jnp.arange(group)
        two = own[1][:, :, None] & everyone[1][:, None] & different
        numbers = jnp.stack([which.sum(dtype=jnp.float32) for which in (two & local, two & whole, two)])
        if around is not None:
            numbers = lax.psum(numbers, (GROUP, RING))
        return local.reshape(-1, group), whole.reshape(-1, group), numbers

    find = rows if around is None else sharded(rows, around, 2, (PAIRS, PAIRS, PartitionSpec()))
    local, whole, (local_twins, whole_twins, number) = find(hashes, included)
    number = jnp.maximum(number, 1)
    return Twins({"local": local, "report": whole}, {"local": local_twins / number, "report": whole_twins / number})
