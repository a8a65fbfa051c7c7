"""Text units from hidden states: pieces -> words -> sentences -> report.

All functions are array operations on the segment ids that come with the tokens (`TokenBatch`), so they run inside jit.
Segments are summed by a product with a one-hot matrix, which is exact and fast on accelerators. An id of -1 has a row
of zeros, so its unit is ignored.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from afloc_jax.levels import TextLevels, TokenBatch


def combine_layers(states: Sequence[Float[Array, "B L D"]], last_layers: int, merge: str) -> Float[Array, "B L D"]:
    """The sum or mean of the last `last_layers` hidden states, in at least float32."""
    chosen = states[-last_layers:]
    total = functools.reduce(jnp.add, (state.astype(jnp.promote_types(state.dtype, jnp.float32)) for state in chosen))
    return total / len(chosen) if merge == "mean" else total


def merge_segments(
    units: Float[Array, "B L D"], segment_ids: Int[Array, "B L"]
) -> tuple[Float[Array, "B L D"], Float[Array, "B L"]]:
    """The sum of the units of each segment, and their number. Segments without a unit are 0; id -1 is ignored.

    >>> pieces, word_ids = jnp.array([[[1.0], [2.0], [4.0], [8.0]]]), jnp.array([[0, 1, 1, -1]])
    >>> words, counts = merge_segments(pieces, word_ids)
    >>> words[0, :, 0].tolist(), counts[0].tolist()
    ([1.0, 6.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0])
    """
    belongs = jax.nn.one_hot(segment_ids, units.shape[1], dtype=units.dtype)  # [B, unit, segment]
    total = jnp.einsum("bls,bld->bsd", belongs, units, precision=lax.Precision.HIGHEST)
    return total, belongs.sum(axis=1)


def words_from_pieces(pieces: Float[Array, "B L D"], word_ids: Int[Array, "B L"], merge: str) -> Float[Array, "B L D"]:
    """The words, as the sum or mean of their pieces.

    The word just before `[SEP]` is always a sum, also with `merge` "mean", as in the published release.
    """
    words, counts = merge_segments(pieces, word_ids)
    if merge == "sum":
        return words
    before_separator = jnp.max(word_ids, axis=1, keepdims=True) - 1
    is_summed = jnp.arange(words.shape[1]) == before_separator
    divisor = jnp.where(is_summed, 1.0, jnp.maximum(counts, 1.0))
    return words / divisor[..., None]


def sentences_from_words(words: Float[Array, "B L D"], sentence_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """The sentences, as the mean of their words; empty slots are zero."""
    sentences, counts = merge_segments(words, sentence_ids)
    return sentences / jnp.maximum(counts, 1.0)[..., None]


def sentence_context(tokens: TokenBatch) -> tuple[Bool[Array, "B L L"], Int[Array, "B L"]]:
    """The attention mask and positions with which BERT reads every sentence of a report on its own.

    Returns:
        The mask: pieces attend to the pieces of their own sentence. The position of each piece within its sentence,
        counted from 1 as in a prompt; `[CLS]` keeps 0.
    """
    words = jnp.maximum(tokens.word_ids, 0)
    sentence = jnp.take_along_axis(tokens.sentence_ids, words, axis=1)  # sentence of each piece; -1 for periods
    sentence = jnp.where(tokens.word_ids >= 0, sentence, -2)
    together = sentence[:, :, None] == sentence[:, None, :]
    first = jnp.argmax(together, axis=2)
    return together, jnp.where(sentence == 0, 0, jnp.arange(words.shape[1]) - first + 1)


def text_levels(
    states: Sequence[Float[Array, "B L E"]],
    tokens: TokenBatch,
    *,
    last_layers: int = 4,
    merge_layers: str = "sum",
    merge_pieces: str = "sum",
    slots: int | None = None,
    project: Callable[[Float[Array, "B L E"]], Float[Array, "B L D"]] | None = None,
) -> TextLevels:
    """Words, sentences and report of each text.

    Layers are combined before pieces are merged. Both operations are linear, so their order does not matter, and one
    merge is cheaper than `last_layers` merges. As published, the report is the mean over ALL slots, empty ones
    included: this scale changes an un-normalised dot product, but not a cosine. Texts that were cut to the L slots that
    they fill get the levels of texts of `slots`, of which the rest is empty. `project` maps the combined layers of each
    piece to the shared width before pieces are merged; without it, E = D.
    """
    pieces = combine_layers(states, last_layers, merge_layers)
    if project:
        pieces = project(pieces)
    words = words_from_pieces(pieces, tokens.word_ids, merge_pieces)
    sentences = sentences_from_words(words, tokens.sentence_ids)
    if slots is not None:
        empty = ((0, 0), (0, slots - words.shape[1]), (0, 0))
        words, sentences = jnp.pad(words, empty), jnp.pad(sentences, empty)
    return TextLevels(
        words=words,
        sentences=sentences,
        report=words.mean(axis=1),
        word_count=tokens.word_count,
        sentence_count=tokens.sentence_count,
    )
