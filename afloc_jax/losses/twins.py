"""Which pairs of a batch have the same text, by the hashes of their texts. definition.py says what follows from it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, UInt32

from afloc_jax.levels import TextHashes
from afloc_jax.losses.definition import identical, is_stated, share_a_sentence
from afloc_jax.losses.ring import GROUP, PAIRS, RING, Ring, gathered, place, sharded


class Twins(NamedTuple):
    """Which of the K pairs of its contrast group are twins of each pair, itself among them, by kind.

    "local" is for the word and sentence level: the reports share a sentence. "report" is for the report level: they
    have the same text. `shares` has the share of twins among the pairs of two that are contrasted with each other; it
    is 0 where there are none.

    `stated` says which sentences of hard negatives the report or one of its twins states ("local").
    """

    pairs: dict[str, Bool[Array, "B K"]]
    shares: dict[str, Float[Array, ""]]
    stated: Bool[Array, "B n S"] | None = None


def find_twins(
    hashes: TextHashes,
    included: Bool[Array, " B"],
    group: int,
    around: Ring | None = None,
    made: UInt32[Array, "B n S 2 2"] | None = None,
) -> Twins:
    """The twins of a batch.

    Args:
        hashes: of the texts as drawn.
        included: the pairs that are contrasted at all.
        group: K, the pairs contrasted with each other.
        around: the ring of devices that the batch is split over.
        made: the hashes of hard negatives.
    """

    def rows(
        hashes: TextHashes, included: Bool[Array, " b"], made: UInt32[Array, "b n S 2 2"] | None
    ) -> tuple[Array, Array, Array, Array | None]:
        """Both kinds [b, K] for the pairs of one device, the numbers of twins, and of all, among pairs of two, and
        what is stated [b, n, S]."""
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
        stated = None
        if made is not None:
            of_groups = made.reshape(-1, k, *made.shape[1:])
            stated = is_stated(of_groups, everyone[0].sentences, local).reshape(made.shape[:3])
        return local.reshape(-1, group), whole.reshape(-1, group), numbers, stated

    find = rows if around is None else sharded(rows, around, 3, (PAIRS, PAIRS, PartitionSpec(), PAIRS))
    local, whole, (local_twins, whole_twins, number), stated = find(hashes, included, made)
    number = jnp.maximum(number, 1)
    shares = {"local": local_twins / number, "report": whole_twins / number}
    return Twins({"local": local, "report": whole}, shares, stated)
