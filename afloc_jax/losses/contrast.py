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
    diagonal. Each cross entropy is the mean over all pairs of all groups, weighted by `weights` (the published
    `weight_matrix`; like PyTorch's class weights they are divided by their sum).

    A pair that is not `included` is left out altogether: it is no example, and no alternative for the others, so the
    loss is the one of the batch without it. With nothing left the loss is 0.
    """
    if included is None:
        included = jnp.ones(similarity.shape[:-1], bool)
    share = jnp.where(included, 1 if weights is None else weights, 0).astype(similarity.dtype)
    total = share.sum()
    share = share / jnp.where(total > 0, total, 1)
    # A left-out pair sees only itself: finite everywhere, and its share is 0.
    seen = (included[..., :, None] & included[..., None, :]) | jnp.eye(similarity.shape[-1], dtype=bool)
    # -inf is safe in a log-sum-exp with a finite diagonal, and its gradient there is exactly 0.
    similarity = jnp.where(seen, similarity, -jnp.inf)
    true_pair = jnp.diagonal(similarity, axis1=-2, axis2=-1)
    image_to_text = jax.nn.logsumexp(similarity, axis=-1) - true_pair
    text_to_image = jax.nn.logsumexp(similarity, axis=-2) - true_pair
    return (share * image_to_text).sum(), (share * text_to_image).sum()
