"""The contrastive losses over a whole pod: text travels around a ring of devices, images stay where they are.

Device d of a ring of R holds b pairs of a contrast group of K = R b. It computes its rows of the similarities [b, K],
one text shard per step, while the next shard is under way; row sums are its own, column sums are added up over the ring
(b x K and K numbers: the only things that grow with the group). The backward pass knows the gradient of every
similarity from them, so it goes around once more, computes each tile anew (tiled.py), keeps the image gradients and
lets the text gradients travel with their text, one step behind, until both are home.

Nothing is differentiated through a collective: forward and backward pass are one `shard_map` each, under one custom
VJP. Groups of at most b pairs need no ring, and K = batch is one ring of all devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from afloc_jax.errors import UsageError
from afloc_jax.losses import definition, tiled
from afloc_jax.losses.low_rank import project, pull_back
from afloc_jax.losses.settings import LossSettings

GROUP, RING = "group", "ring"
PAIRS = PartitionSpec((GROUP, RING))  # arrays of pairs, split in order over all devices


class Ring(NamedTuple):
    """Where the pairs of a batch lie: `mesh` has the axes group x ring; hashable."""

    mesh: Mesh
    group: int  # pairs contrasted with each other

    @classmethod
    def of(cls, mesh: Mesh, batch: int, group: int) -> "Ring":
        """For `batch` pairs split in order over the devices of `mesh`, contrasted in blocks of `group`.

        Raises UsageError where a device would hold parts of several groups, or the batch does not divide.
        """
        devices = mesh.devices.reshape(-1)
        if batch % len(devices):
            raise UsageError(f"a batch of {batch} pairs does not divide over {len(devices)} devices; change batch_size")
        share = batch // len(devices)
        if not fits_around(group, share):
            raise UsageError(
                f"loss.contrast_group is {group} but each device holds {share} pairs; one must divide the other"
            )
        around = max(1, group // share)
        axes = (AxisType.Auto,) * 2
        return cls(Mesh(devices.reshape(-1, around), (GROUP, RING), axis_types=axes), group)

    @property
    def size(self) -> int:
        """Devices that share a contrast group."""
        return self.mesh.shape[RING]


def fits_around(group: int, share: int) -> bool:
    """Whether contrast groups of `group` pairs lie on whole devices of `share` pairs each, or within one."""
    return group % share == 0 or share % group == 0


class Rows(NamedTuple):
    """How similarities are computed on one device, and their gradient pulled back; pure functions of local arrays.

    `forward(images, texts, counts, ring)` -> [b / k, k, K], k = min(b, K) images of each group here;
    `backward(images, texts, counts, d_rows, ring)` -> gradients like `images`, or wider, and like `texts`.
    """

    forward: Callable[..., Float[Array, "g k K"]]
    backward: Callable[..., tuple[Any, Any]]


def local_losses(
    regions: Float[Array, "B N F"],
    units: Float[Array, "B T D"],
    norms: Float[Array, "B T"],
    counts: Int[Array, " B"],
    ring: Ring,
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
    projection: Float[Array, "F D"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both cross entropies (`contrast.contrast`) of the word or sentence level, exact over each whole group.

    With a `projection`, the same on every device, the regions are `regions @ projection`. `norms` are those of `units`
    that the cosines use (both: see low_rank.py). Regions may be bfloat16: units then take part in products, and travel,
    as bfloat16; products add up in float32, and softmax, norms, log-sum-exp and the units' gradient are float32
    (float64 for float64). `weights` are constants: no gradient reaches them.
    """
    rows = _local_rows(settings)
    return _losses(rows, ring, regions, (units, norms), counts, _share(counts, weights, norms.dtype), projection)


def report_losses(
    images: Float[Array, "B D"],
    reports: Float[Array, "B D"],
    counts: Int[Array, " B"],
    ring: Ring,
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both cross entropies of the report level. A report is one vector: it is gathered rather than sent around."""
    wide = jnp.promote_types(images.dtype, jnp.float32)
    rows = _report_rows(settings.contrast_temperature)
    share = _share(counts, weights, wide)
    return _losses(rows, ring, images.astype(wide), reports.astype(wide), counts, share, None)


def _share(counts: Int[Array, " B"], weights: Float[Array, " B"] | None, dtype: Any) -> Float[Array, " B"]:
    """Weight of each pair in the means: pairs without a unit are left out."""
    share = jnp.where(counts > 0, 1 if weights is None else weights, 0).astype(dtype)
    total = share.sum()
    return share / jnp.where(total > 0, total, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _losses(rows: Rows, ring: Ring, images: Any, texts: Any, counts: Array, share: Array, projection: Any):
    return _forward(rows, ring, images, texts, counts, share, projection)[0]


def _forward(rows, ring, images, texts, counts, share, projection):
    def on_device(images, texts, counts, share, projection):
        images = project(images, projection)
        similarity = _hide(rows.forward(images, texts, jnp.maximum(counts, 1), ring), counts > 0, ring)
        pair = jnp.take_along_axis(similarity, _own_column(similarity, ring), axis=2)[..., 0]  # [g, k]
        row_sum = jax.nn.logsumexp(similarity, axis=2)
        largest = lax.pmax(similarity.max(axis=1), RING)  # [g, K], finite: every column holds its own pair
        column_sum = largest + jnp.log(lax.psum(jnp.exp(similarity - largest[:, None]).sum(axis=1), RING))
        own_column_sum = _own(column_sum, pair.shape[1], ring)
        losses = tuple(
            lax.psum((share.reshape(pair.shape) * (sums - pair)).sum(), (GROUP, RING))
            for sums in (row_sum, own_column_sum)
        )
        return losses, (similarity.reshape(-1, ring.group), row_sum.reshape(-1), own_column_sum.reshape(-1))

    run = _sharded(on_device, ring, 4, (PartitionSpec(), PAIRS), replicated=1)
    losses, saved = run(images, texts, counts, share, projection)
    return losses, (images, texts, counts, share, *saved, projection)


def _backward(rows, ring, saved, d_losses):
    def on_device(images, texts, counts, share, similarity, row_sum, column_sum, projection, d_row, d_column):
        k = min(len(counts), ring.group)
        similarity = similarity.reshape(-1, k, ring.group)
        mine = jax.nn.one_hot(_own_column(similarity, ring)[..., 0], ring.group, dtype=similarity.dtype)
        by_row = (d_row * share).reshape(-1, k, 1) * (jnp.exp(similarity - row_sum.reshape(-1, k, 1)) - mine)
        column_share, column_sum = (_whole_group(array.reshape(-1, k), ring)[:, None] for array in (share, column_sum))
        by_column = d_column * column_share * (jnp.exp(similarity - column_sum) - mine)
        d_images, d_texts = rows.backward(
            project(images, projection), texts, jnp.maximum(counts, 1), by_row + by_column, ring
        )
        d_images, d_projection = pull_back(images, projection, d_images)
        d_projection = jax.tree.map(lambda own: lax.psum(own, (GROUP, RING)), d_projection)
        return d_images.astype(images.dtype), d_texts, d_projection

    run = _sharded(on_device, ring, 7, (PAIRS, PAIRS, PartitionSpec()), replicated=3)
    d_images, d_texts, d_projection = run(*saved, *d_losses)
    return d_images, d_texts, None, jnp.zeros_like(saved[3]), d_projection


_losses.defvjp(_forward, _backward)


def _sharded(function: Callable, ring: Ring, split: int, out_specs: Any, replicated: int = 0) -> Callable:
    in_specs = (PAIRS,) * split + (PartitionSpec(),) * replicated
    # No autodiff passes through, so how values vary over devices need not be tracked.
    return jax.shard_map(function, mesh=ring.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _hide(rows: Float[Array, "g k K"], included: Bool[Array, " b"], ring: Ring) -> Float[Array, "g k K"]:
    """-inf where an image or a caption is left out, except in a pair's own place: finite sums, and gradient 0."""
    included = included.reshape(rows.shape[:2])
    seen = included[:, :, None] & _whole_group(included, ring)[:, None]
    own = jnp.arange(ring.group) == _own_column(rows, ring)
    return jnp.where(seen | own, rows, -jnp.inf)


def _own_column(rows: Float[Array, "g k K"], ring: Ring) -> Int[Array, "g k 1"]:
    """Where in its group each of this device's captions stands."""
    k = rows.shape[1]
    return jnp.broadcast_to(_place(ring) * k + jnp.arange(k), rows.shape[:2])[..., None]


def _own(columns: Float[Array, "g K"], k: int, ring: Ring) -> Float[Array, "g k"]:
    return lax.dynamic_slice_in_dim(columns, _place(ring) * k, k, axis=1)


def _whole_group(own: Array, ring: Ring) -> Array:
    """[g, k] of this device -> [g, K] of the group."""
    return own if ring.size == 1 else lax.all_gather(own, RING, axis=1, tiled=True)


def _place(ring: Ring) -> Any:
    return lax.axis_index(RING) if ring.size > 1 else 0


def _pass_on(tree: Any, ring: Ring) -> Any:
    """Every device gives `tree` to the next one of its ring."""
    return lax.ppermute(tree, RING, [(device, (device + 1) % ring.size) for device in range(ring.size)])


@functools.lru_cache(maxsize=32)
def _report_rows(temperature: float) -> Rows:
    def similarity(images, reports):
        return jax.vmap(definition.report_similarity, in_axes=(0, 0, None))(images, reports, temperature)

    def grouped(images, reports, ring):
        k = min(len(images), ring.group)
        images, reports = (array.reshape(-1, k, array.shape[-1]) for array in (images, reports))
        return images, _whole_group(reports, ring)

    def forward(images, reports, counts, ring):
        return similarity(*grouped(images, reports, ring))

    def backward(images, reports, counts, d_rows, ring):
        _, pull_back = jax.vjp(similarity, *grouped(images, reports, ring))
        d_images, d_reports = pull_back(d_rows)
        if ring.size > 1:
            d_reports = lax.psum_scatter(d_reports, RING, scatter_dimension=1, tiled=True)
        return d_images.reshape(images.shape), d_reports.reshape(reports.shape)

    return Rows(forward, backward)


@functools.lru_cache(maxsize=32)
def _local_rows(settings: LossSettings) -> Rows:
    """Rows of definition.local_similarity: tiles of tiled.py, the text of one device at a time."""

    def grouped(regions, texts, counts, ring):
        k = min(len(counts), ring.group)
        regions, units, norms, counts = (a.reshape(-1, k, *a.shape[1:]) for a in (regions, *texts, counts))
        return regions[:, None], (units.astype(regions.dtype), norms, counts)  # tiled.py: [g, p = 1, J, N, D]

    def forward(regions, texts, counts, ring):
        regions, text = grouped(regions, texts, counts, ring)
        groups, _, k = regions.shape[:3]
        whole = jnp.zeros((groups, k, ring.size, k), texts[1].dtype)

        def step(number, carry):
            text, whole = carry
            following = _pass_on(text, ring)  # asked for before the work, so that both happen at once
            block = tiled.tile_rows(regions, text, settings)[:, 0]
            source = (_place(ring) - number) % ring.size
            return following, lax.dynamic_update_index_in_dim(whole, block, source, axis=2)

        _, whole = lax.fori_loop(0, ring.size, step, (text, whole))
        return whole.reshape(groups, k, ring.group)

    def backward(regions, texts, counts, d_rows, ring):
        shape = regions.shape
        regions, text = grouped(regions, texts, counts, ring)
        groups, _, k = regions.shape[:3]
        d_rows = d_rows.reshape(groups, 1, k, ring.size, k)
        wide = texts[1].dtype

        def step(number, carry):
            text, d_regions, d_text = carry
            following, travelled = _pass_on(text, ring), _pass_on(d_text, ring)
            source = (_place(ring) - number) % ring.size
            d_block = lax.dynamic_index_in_dim(d_rows, source, axis=3, keepdims=False)
            d_regions, *d_here, _ = tiled.tile_gradients(regions, text, d_block, settings, start=d_regions)
            return following, d_regions, jax.tree.map(jnp.add, travelled, tuple(d_here))

        nothing = (jnp.zeros(text[0].shape, wide), jnp.zeros(text[1].shape, wide))
        start = text, jnp.zeros(regions.shape, wide), nothing
        _, d_regions, d_text = lax.fori_loop(0, ring.size, step, start)
        # The gradients are one step behind their text, which is home again by now.
        d_units, d_norms = _pass_on(d_text, ring)
        d_texts = d_units.reshape(texts[0].shape).astype(texts[0].dtype), d_norms.reshape(texts[1].shape)
        return d_regions.reshape(shape), d_texts

    return Rows(forward, backward)
