"""How many directions the embeddings of a batch point in: their effective rank, by level and side.

With v_i the embeddings divided by their norm and C = sum_i v_i v_i^T, of eigenvalues l, the effective rank is

    (sum l)^2 / sum l^2 = (tr C)^2 / |C|^2

(the participation ratio; |C|^2 sums the squares of all entries). It is between 1, where all embeddings are multiples of
one vector, and the number of embeddings or their width, whichever is smaller. It is 1 / mean_ij cos^2(v_i, v_j).

Local levels give one region and one unit of each pair, other ones in the next pair, so that both images and places
differ: the means over regions are much alike in any two radiographs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from afloc_jax.levels import LEVELS, ImageLevels, LevelName, TextLevels
from afloc_jax.losses import LossSettings
from afloc_jax.vectors import unit_norm

Ranks = dict[str, Float[Array, ""]]  # by "image/LEVEL" and "text/LEVEL"


def effective_rank(vectors: Float[Array, "B D"], included: Bool[Array, " B"]) -> Float[Array, ""]:
    """The effective rank of the included vectors that are not zero. It is 1 where there is none."""
    units = unit_norm(vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))) * included[:, None]
    scatter = jnp.einsum("bd,be->de", units, units, precision="highest")
    return jnp.maximum(1, jnp.trace(scatter) ** 2 / jnp.maximum((scatter**2).sum(), 1e-30))


def ranks(image: ImageLevels, text: TextLevels, settings: LossSettings) -> Ranks:
    """The effective ranks of both sides of each level whose weight is not 0. They have no gradient.

    Args:
        image, text: as `losses.contrastive_losses` takes them. With `settings.is_low_rank` the shallow map is not read.
        settings: `config.loss`.
    """
    found: Ranks = {}
    for level in LEVELS:
        if settings.weights.of(level):
            there = (text.sentence_count if level == "sentence" else text.word_count) > 0
            for side, vectors in zip(("image", "text"), _sides(level, image, text, settings), strict=True):
                found[f"{side}/{level}"] = effective_rank(jax.lax.stop_gradient(vectors), there)
    return found


def _sides(
    level: LevelName, image: ImageLevels, text: TextLevels, settings: LossSettings
) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
    if level == "report":
        return image.whole, text.report
    if level == "sentence":
        return _one_region(image.deep), _one_unit(text.sentences, text.sentence_count)
    words = _one_unit(text.words, text.word_count)
    if settings.is_low_rank:
        assert image.shallow_factors is not None  # or the losses would have raised
        features, projection = image.shallow_factors
        return _one_region(features) @ projection, words
    return _one_region(image.deep if settings.word_map == "deep" else image.shallow), words


def _one_region(regions: Float[Array, "B h w D"]) -> Float[Array, "B D"]:
    """Region 0 of image 0, and in each next image one that lies 0.62 of all regions further on, around the end."""
    pairs, width = len(regions), regions.shape[-1]
    regions = regions.reshape(pairs, -1, width)
    number = regions.shape[1]
    return _taken(regions, jnp.arange(pairs) * round(0.62 * number) % number)


def _one_unit(units: Float[Array, "B T D"], counts: Int[Array, " B"]) -> Float[Array, "B D"]:
    """Unit i modulo the number of units of caption i."""
    return _taken(units, jnp.arange(len(units)) % jnp.maximum(counts, 1))


def _taken(vectors: Float[Array, "B N D"], index: Int[Array, " B"]) -> Float[Array, "B D"]:
    taken: Array = jnp.take_along_axis(vectors, index[:, None, None], axis=1)[:, 0]
    return taken
