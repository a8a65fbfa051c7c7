"""Cross entropies over a square of similarities: each image picks its caption, each caption its image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def contrast(
    similarity: Float[Array, "*G B B"],
    weights: Float[Array, "*G B"] | None = None,
    included: Bool[Array, "*G B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both contrastive cross entropies of the published loss, `(image_to_text, text_to_image)`.

    `similarity[..., b, i]` compares image b with caption i of the same contrast group; the true pairs are on the
    diagonal. With q_i = weights_i / sum of weights over all pairs of all groups,

        image_to_text = sum_i q_i (log sum_j exp S_ij - S_ii)
        text_to_image = sum_j q_j (log sum_i exp S_ij - S_jj)

    `weights` is the published `weight_matrix` (by default all 1).

    A pair that is not `included` is neither an example nor a negative for the others: the losses are those of the batch
    without it. They are 0 where no pair is included.

    >>> found = contrast(jnp.array([[9.0, 0.0], [0.0, 9.0]]))  # every image has picked its caption
    >>> guessed = contrast(jnp.zeros((2, 2)))  # log 2: one of two at random
    >>> [[round(float(loss), 3) for loss in losses] for losses in (found, guessed)]
    [[0.0, 0.0], [0.693, 0.693]]
    """
    if included is None:
        included = jnp.ones(similarity.shape[:-1], bool)
    share = jnp.where(included, 1 if weights is None else weights, 0).astype(similarity.dtype)
    total = share.sum()
    share = share / jnp.where(total > 0, total, 1)
    # A pair that is left out sees only itself, so its cross entropy is finite; its share in the mean is 0.
    seen = (included[..., :, None] & included[..., None, :]) | jnp.eye(similarity.shape[-1], dtype=bool)
    # -inf is safe: the diagonal keeps each log-sum-exp finite, and the gradient at -inf is exactly 0.
    similarity = jnp.where(seen, similarity, -jnp.inf)
    true_pair = jnp.diagonal(similarity, axis1=-2, axis2=-1)
    image_to_text = jax.nn.logsumexp(similarity, axis=-1) - true_pair
    text_to_image = jax.nn.logsumexp(similarity, axis=-2) - true_pair
    return (share * image_to_text).sum(), (share * text_to_image).sum()
