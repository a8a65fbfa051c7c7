"""The word level in fewer dimensions: an exact rewrite for features that a linear layer without bias widened.

The shallow map is projected from F channels (512) to D (768) as C = X K. With the QR decomposition K^T = Q R every
product with a region is C w = (X R^T) (Q^T w), and Q keeps lengths: the norms of (averages of) regions are those of
X R^T. So the loss needs F instead of D dimensions; only |w| must come from the full unit. No matrix is inverted in the
forward pass.

X R^T is as large as X and so is its gradient. tiled.py makes both for one image at a time and takes the gradient back
to X and R there, so that neither exists for the whole batch. ring.py makes them for a device's share, once for all the
text that comes by: made anew at each of its steps they would cost as much as F / 2 more words a step.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from afloc_jax.errors import UsageError
from afloc_jax.vectors import norm


def reduce_rank(
    kernel: Float[Array, "F D"], units: Float[Array, "*I T D"]
) -> tuple[Float[Array, "F F"], Float[Array, "*I T F"], Float[Array, "*I T"]]:
    """`(projection, units, unit_norms)`: `features @ projection` and `units` have the local similarity of
    `features @ kernel` and the given units.

    For `tiled.grouped_similarity` and `ring.local_losses`. The projection, R^T, is at least float32. Needs F <= D and a
    kernel of full rank; its gradient flows through the QR decomposition. Raises UsageError where F > D: there is
    nothing to save.
    """
    if kernel.shape[0] > kernel.shape[1]:
        raise UsageError(
            f"loss.low_rank: the shallow map has {kernel.shape[0]} features and is projected to {kernel.shape[1]}; "
            "rank is saved only where a projection widens, so switch it off"
        )
    wide = jnp.promote_types(units.dtype, jnp.float32)
    q, r = jnp.linalg.qr(kernel.T.astype(wide))
    return r.T, units @ q.astype(units.dtype), norm(units.astype(wide))


def project(features: Float[Array, "*B N F"], projection: Float[Array, "F D"] | None) -> Float[Array, "*B N D"]:
    """Regions in the precision of the features; without a projection the features are the regions."""
    return features if projection is None else features @ projection.astype(features.dtype)


def pull_back(
    features: Float[Array, "..."],
    projection: Float[Array, "F D"] | None,
    d_regions: Float[Array, "..."],
    apart: int = 0,
) -> tuple[Float[Array, "..."], Float[Array, "*A F D"] | None]:
    """Gradients of `project`: of the features, and of the projection in the precision of `d_regions` (or None).

    The latter is added up over images, but for the `apart` leading axes, A.
    """
    if projection is None:
        return d_regions, None
    wide = d_regions.dtype
    d_regions = d_regions.astype(features.dtype)
    kept, summed = tuple(range(apart)), tuple(range(apart, features.ndim - 1))
    d_projection = lax.dot_general(features, d_regions, ((summed, summed), (kept, kept)), preferred_element_type=wide)
    return d_regions @ projection.T.astype(features.dtype), d_projection
