"""The word level in fewer dimensions: an exact rewrite for regions that a linear layer without bias has widened.

The shallow map X [N, F] is projected to regions C = X K [N, D] by the kernel K [F, D] (512 to 768 in ResNet-50). With
the QR decomposition K^T = Q R, Q [D, F] and R [F, F], the product of the regions with a unit w [D] is

    C w = X K w = (X R^T) (Q^T w)

The columns of Q are orthonormal, so for any weights a over regions |a C| = |a X R^T|. The loss can therefore use the
regions X R^T [N, F] and the units Q^T w [F]. Only the norm |w| must come from the full unit. The forward pass inverts
no matrix.

X R^T is as large as X, and so is its gradient. tiled.py makes both for one image at a time and pulls the gradient back
to X and R at once, so that neither exists for all images of the batch. ring.py makes them once for all images of a
device and uses them in every step: making them takes as many operations as the forward pass of F / 2 words.

The gradient of a QR decomposition divides by the diagonal of R. If a feature is always 0, weight decay shrinks its row
of K to nothing, and the gradient of that row would be rounding errors divided by nothing, or NaN. These errors come
from the rows that follow it in the decomposition. Small rows are therefore decomposed last, in the order of their
length, and none is shorter than 1e-12 of the longest. A kernel without small rows is decomposed as it is.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from afloc_jax.errors import UsageError
from afloc_jax.vectors import norm


def reduce_rank(
    kernel: Float[Array, "F D"], units: Float[Array, "*I T D"]
) -> tuple[Float[Array, "F F"], Float[Array, "*I T F"], Float[Array, "*I T"]]:
    """The local similarity's inputs of width F: `(projection, units, unit_norms)`.

    `features @ projection` and the returned units have the same local similarity as `features @ kernel` and the units
    passed in, if the cosines use `unit_norms`. `tiled.grouped_similarity` and `ring.local_losses` take them so. The
    projection is R^T, in at least float32. Rows of the kernel may be 0; the others must be independent, because its
    gradient flows through the QR decomposition. Raises UsageError where F > D, because nothing is saved then.
    """
    if kernel.shape[0] > kernel.shape[1]:
        raise UsageError(
            f"loss.low_rank: the shallow map has {kernel.shape[0]} features and is projected to {kernel.shape[1]}; "
            "rank is saved only where a projection widens, so switch it off"
        )
    wide = jnp.promote_types(units.dtype, jnp.float32)
    kernel, order = _small_rows_last(kernel.astype(wide))
    q, r = jnp.linalg.qr(kernel.T)
    return r.T[jnp.argsort(order)], units @ q.astype(units.dtype), norm(units.astype(wide))


def _small_rows_last(kernel: Float[Array, "F D"]) -> tuple[Float[Array, "F D"], Int[Array, " F"]]:
    """The rows of the kernel in the order that the decomposition needs, lengthened where they are almost 0; the order.

    Rows of at least 1 / 100 of the largest norm come first and keep their order.
    """
    norms = lax.stop_gradient(norm(kernel))
    largest = norms.max()
    order = jnp.argsort(jnp.where(norms < largest / 100, -norms, -largest), stable=True)
    least = 1e-12 * jnp.where(largest > 0, largest, 1)
    features, width = kernel.shape
    missing = jnp.where(norms < least, least, 0)[:, None] * jnp.eye(features, width, dtype=kernel.dtype)
    return (kernel + missing)[order], order


def project(features: Float[Array, "*B N F"], projection: Float[Array, "F D"] | None) -> Float[Array, "*B N D"]:
    """The regions, in the precision of the features: `features @ projection`, or `features` where that is None."""
    return features if projection is None else features @ projection.astype(features.dtype)


def pull_back(
    features: Float[Array, "..."],
    projection: Float[Array, "F D"] | None,
    d_regions: Float[Array, "..."],
    apart: int = 0,
) -> tuple[Float[Array, "..."], Float[Array, "*A F D"] | None]:
    """Gradients of `project` with respect to the features, and to the projection (None without one).

    The gradient of the projection has the precision of `d_regions`. It is summed over all axes but the first `apart`
    ones, A, and the last.
    """
    if projection is None:
        return d_regions, None
    wide = d_regions.dtype
    kept, summed = tuple(range(apart)), tuple(range(apart, features.ndim - 1))
    d_regions = d_regions.astype(features.dtype)
    d_projection = lax.dot_general(features, d_regions, ((summed, summed), (kept, kept)), preferred_element_type=wide)
    # Without a barrier XLA may merge a transpose that follows into the product, and its CPU compiler (jaxlib 0.10.2)
    # does not know the result in bfloat16.
    return d_regions @ projection.T.astype(features.dtype), lax.optimization_barrier(d_projection)
