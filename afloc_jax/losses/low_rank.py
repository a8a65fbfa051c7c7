"""The word level in fewer dimensions: an exact rewrite for features that a linear layer without bias widened.

The shallow map is projected from F channels (512) to D (768) as C = X K. With the QR decomposition K^T = Q R every
product with a region is C w = (X R^T) (Q^T w), and Q keeps lengths: the norms of (averages of) regions are those of
X R^T. So the loss needs F instead of D dimensions; only |w| must come from the full unit. No matrix is inverted in the
forward pass.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from afloc_jax.errors import UsageError
from afloc_jax.vectors import norm


def reduce_rank(
    features: Float[Array, "*B N F"], kernel: Float[Array, "F D"], units: Float[Array, "*I T D"]
) -> tuple[Float[Array, "*B N F"], Float[Array, "*I T F"], Float[Array, "*I T"]]:
    """`(regions, units, unit_norms)` whose local similarity is the one of `features @ kernel` with `units`.

    For `tiled.grouped_similarity`. Needs F <= D and a kernel of full rank; its gradient flows through the QR
    decomposition. Raises UsageError where F > D: there is nothing to save.
    """
    if kernel.shape[0] > kernel.shape[1]:
        raise UsageError(
            f"loss.low_rank: the shallow map has {kernel.shape[0]} features and is projected to {kernel.shape[1]}; "
            "rank is saved only where a projection widens, so switch it off"
        )
    wide = jnp.promote_types(units.dtype, jnp.float32)
    q, r = jnp.linalg.qr(kernel.T.astype(wide))
    regions = features @ r.T.astype(features.dtype)
    return regions, units @ q.astype(units.dtype), norm(units.astype(wide))
