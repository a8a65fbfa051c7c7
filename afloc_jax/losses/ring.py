"""The contrastive losses on many devices: captions travel around a ring of devices, images stay where they are.

Device d of a ring of R devices holds b pairs of a contrast group of K = R b pairs. It computes its b rows of the
similarities S [K, K] between images (rows) and captions (columns). With q_i the share of pair i in the mean, the losses
are

    image to text = sum_i q_i (log sum_j exp S_ij - S_ii)        log-sum-exp of a row, which lies on one device
    text to image = sum_j q_j (log sum_i exp S_ij - S_jj)        log-sum-exp of a column, over all devices of the ring

Forward pass: in step n = 0 .. R - 1 device d holds the captions that device (d - n) mod R started with. It computes
the block [b, b] of its rows for these captions (tiles.py) while it sends them to device (d + 1) mod R. Only the rows
[b, K] and the column sums [K] grow with the group.

Backward pass: the saved S and its row and column sums give the gradient of every similarity,

    dS_ij = dL1 q_i (softmax_j S_ij - [i = j]) + dL2 q_j (softmax_i S_ij - [i = j])

with dL1, dL2 the gradients of the two losses, softmax_j along a row, softmax_i along a column, and [i = j] 1 for a true
pair and else 0. (Where twins share, it is 1 / n_i for the n_i twins j of i in the first term, and 1 / n_j in the
second; see `definition.contrast`. Hard negatives of image i, with similarities H_im, join the log-sum-exp of its row:
dH_im = dL1 q_i exp(H_im - that).) The captions go around the ring once more and each tile is computed again. The
gradient of the images is summed on their device. The gradient of the captions travels one step behind them: a device
adds its part to what the device before it has summed for the same captions. After R steps the captions are back, and
one more step brings their gradient back.

Nothing is differentiated through a collective: the forward and the backward pass are one `shard_map` each, under one
custom VJP. A group of at most b pairs lies on one device and needs no ring; K = batch is one ring of all devices.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from afloc_jax.errors import UsageError
from afloc_jax.losses import definition, tiles
from afloc_jax.losses.bins import placed
from afloc_jax.losses.low_rank import project, pull_back
from afloc_jax.losses.packing import Captions
from afloc_jax.losses.settings import LossSettings, Twins

GROUP, RING = "group", "ring"
PAIRS = PartitionSpec((GROUP, RING))  # arrays of pairs, split in order over all devices


class Ring(NamedTuple):
    """How the pairs of a batch lie on devices: `mesh` has the axes group x ring. Hashable."""

    mesh: Mesh
    group: int  # pairs contrasted with each other

    @classmethod
    def of(cls, mesh: Mesh, batch: int, group: int) -> "Ring":
        """The ring for `batch` pairs, split in order over the devices of `mesh` and contrasted in groups of `group`.

        Raises UsageError where the batch does not divide over the devices, or where neither of a group and a device's
        pairs divides the other.
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
        size: int = self.mesh.shape[RING]
        return size


def fits_around(group: int, share: int) -> bool:
    """Whether one of `group`, the pairs of a contrast group, and `share`, those of a device, divides the other."""
    return group % share == 0 or share % group == 0


class Rows(NamedTuple):
    """One device's rows of S, and their gradient pulled back: pure functions of the device's arrays.

    A device of b pairs holds k = min(b, K) images of each of g = b / k groups.

    `forward(images, texts, counts, ring)` returns the rows [g, k, K].
    `backward(images, texts, counts, rows, d_rows, ring)` returns the gradients of `images` (in their precision or a
    wider one) and of `texts`, from the rows and their gradient.
    """

    forward: Callable[..., Float[Array, "g k K"]]
    backward: Callable[..., tuple[Array, PyTree]]


def local_losses(
    regions: Float[Array, "B N F"],
    units: Float[Array, "B T D"],
    norms: Float[Array, "B T"],
    counts: Int[Array, " B"],
    ring: Ring,
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
    projection: Float[Array, "F D"] | None = None,
    twins: Bool[Array, "B K"] | None = None,
    made: Float[Array, "B n"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both cross entropies of the word or sentence level, those of `definition.contrast` over each whole group.

    Regions may be bfloat16. The units are then rounded to bfloat16 for products and for sending. Products are summed in
    float32; softmax, norms, log-sum-exp and the units' gradient are float32 (float64 for float64 inputs).

    Args:
        regions: the image features, of F channels with a `projection`, else of the units' width D.
        units: the text units; the first `counts` of each caption are valid.
        norms: the norms of the units that the cosines use (see low_rank.py).
        counts: the number of valid units; a pair with 0 is left out.
        ring: from `Ring.of`, for this batch.
        settings: `config.loss`.
        weights: the weight of each pair in the means, constants without a gradient; by default all 1.
        projection: the regions are `regions @ projection`; the same on every device (see low_rank.py).
        twins: which pairs of its group have the text of each pair (`twin_pairs`), where `settings.twins` reads them.
        made: the similarities of each image with its hard negatives (`definition.made_similarity`).
    """
    rows = local_rows(settings, ring.mesh.devices.flat[0].platform)
    share = definition.shares(counts > 0, weights, norms.dtype)
    return _losses(rows, ring, settings.twins, regions, (units, norms), counts, share, twins, made, projection)


def report_losses(
    images: Float[Array, "B D"],
    reports: Float[Array, "B D"],
    counts: Int[Array, " B"],
    ring: Ring,
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
    twins: Bool[Array, "B K"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Both cross entropies of the report level. All devices gather all reports: one vector each is little to send."""
    wide = jnp.promote_types(images.dtype, jnp.float32)
    rows = _report_rows(settings.contrast_temperature)
    share = definition.shares(counts > 0, weights, wide)
    return _losses(
        rows, ring, settings.twins, images.astype(wide), reports.astype(wide), counts, share, twins, None, None
    )


_Losses = tuple[Float[Array, ""], Float[Array, ""]]  # image to text, text to image


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _losses(
    rows: Rows, ring: Ring, treatment: Twins, images: Array, texts: PyTree, counts: Array, share: Array,
    twins: Array | None, made: Array | None, projection: Array | None,
) -> _Losses:  # fmt: skip
    return _forward(rows, ring, treatment, images, texts, counts, share, twins, made, projection)[0]


def _forward(
    rows: Rows, ring: Ring, treatment: Twins, images: Array, texts: PyTree, counts: Array, share: Array,
    twins: Array | None, made: Array | None, projection: Array | None,
) -> tuple[_Losses, PyTree]:  # fmt: skip
    def on_device(
        images: Array,
        texts: PyTree,
        counts: Array,
        share: Array,
        twins: Array | None,
        made: Array | None,
        projection: Array | None,
    ) -> tuple[_Losses, tuple[Array, Array, Array]]:
        images = project(images, projection)
        similarity = rows.forward(images, texts, jnp.maximum(counts, 1), ring)
        masked = twins if treatment == "mask" else None
        similarity = jnp.where(_seen(counts > 0, ring, masked) | _own_pair(similarity, ring), similarity, -jnp.inf)
        pair = jnp.take_along_axis(similarity, _own_column(similarity, ring), axis=2)[..., 0]  # [g, k]
        own_pair = pair
        if treatment == "share":
            right, number = _right(counts > 0, ring, twins)
            picked = jnp.where(right, similarity, 0)
            pair = picked.sum(axis=2) / number
            own_pair = _own(lax.psum(picked.sum(axis=1), RING), pair.shape[1], ring) / number
        row_sum = jax.nn.logsumexp(similarity, axis=2)
        if made is not None:
            row_sum = jnp.logaddexp(row_sum, jax.nn.logsumexp(made, axis=1).reshape(row_sum.shape))
        # The log-sum-exp of the columns takes two collectives of K numbers: the maximum of each column, which is finite
        # because a column holds its own pair, and the sum of exp(S - maximum).
        largest = lax.pmax(similarity.max(axis=1), RING)  # [g, K]
        column_sum = largest + jnp.log(lax.psum(jnp.exp(similarity - largest[:, None]).sum(axis=1), RING))
        own_column_sum = _own(column_sum, pair.shape[1], ring)
        by_row, by_column = (
            lax.psum((share.reshape(pair.shape) * difference).sum(), (GROUP, RING))
            for difference in (row_sum - pair, own_column_sum - own_pair)
        )
        return (by_row, by_column), (
            similarity.reshape(-1, ring.group),
            row_sum.reshape(-1),
            own_column_sum.reshape(-1),
        )

    run = sharded(on_device, ring, 6, (PartitionSpec(), PAIRS), replicated=1)
    losses, saved = run(images, texts, counts, share, twins, made, projection)
    # What a mask hides is -inf in the saved similarities.
    return losses, (images, texts, counts, share, twins if treatment == "share" else None, made, *saved, projection)


def _backward(
    rows: Rows, ring: Ring, treatment: Twins, saved: PyTree, d_losses: _Losses
) -> tuple[Array, PyTree, None, Array, None, Array | None, Array | None]:
    def on_device(
        images: Array, texts: PyTree, counts: Array, share: Array, twins: Array | None, made: Array | None,
        similarity: Array, row_sum: Array, column_sum: Array, projection: Array | None, d_row: Array, d_column: Array,
    ) -> tuple[Array, PyTree, Array | None, Array | None]:  # fmt: skip
        d_made = None if made is None else (d_row * share)[:, None] * jnp.exp(made - row_sum[:, None])
        k = min(len(counts), ring.group)
        similarity = similarity.reshape(-1, k, ring.group)
        mine = own = _own_pair(similarity, ring).astype(similarity.dtype)
        if twins is not None:
            right, number = _right(counts > 0, ring, twins)
            mine, own = right / number[..., None], right / gathered(number, ring)[:, None]
        by_row = (d_row * share).reshape(-1, k, 1) * (jnp.exp(similarity - row_sum.reshape(-1, k, 1)) - mine)
        column_share, column_sum = (gathered(array.reshape(-1, k), ring)[:, None] for array in (share, column_sum))
        by_column = d_column * column_share * (jnp.exp(similarity - column_sum) - own)
        d_images, d_texts = rows.backward(
            project(images, projection), texts, jnp.maximum(counts, 1), similarity, by_row + by_column, ring
        )
        d_images, d_projection = pull_back(images, projection, d_images)
        d_projection = jax.tree.map(lambda own: lax.psum(own, (GROUP, RING)), d_projection)
        return d_images.astype(images.dtype), d_texts, d_made, d_projection

    run = sharded(on_device, ring, 9, (PAIRS, PAIRS, PAIRS, PartitionSpec()), replicated=3)
    d_images, d_texts, d_made, d_projection = run(*saved, *d_losses)
    return d_images, d_texts, None, jnp.zeros_like(saved[3]), None, d_made, d_projection


_losses.defvjp(_forward, _backward)


def sharded(
    function: Callable[..., PyTree], ring: Ring, split: int, out_specs: PyTree, replicated: int = 0
) -> Callable[..., PyTree]:
    """`function` on every device. Its first `split` arguments are sharded, the next `replicated` ones replicated."""
    in_specs = (PAIRS,) * split + (PartitionSpec(),) * replicated
    # check_vma tracks how values vary over devices; only autodiff through the shard_map would need that.
    return jax.shard_map(function, mesh=ring.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _seen(included: Bool[Array, " b"], ring: Ring, masked: Bool[Array, "b K"] | None = None) -> Bool[Array, "g k K"]:
    """Where neither the image nor the caption is left out, and the pair is not masked."""
    included = included.reshape(-1, min(len(included), ring.group))
    seen = included[:, :, None] & gathered(included, ring)[:, None]
    return seen if masked is None else seen & ~masked.reshape(seen.shape)


def _right(
    included: Bool[Array, " b"], ring: Ring, twins: Bool[Array, "b K"] | None
) -> tuple[Bool[Array, "g k K"], Int[Array, "g k"]]:
    """Each pair's own place and those of its twins, and how many they are."""
    seen = _seen(included, ring)
    own = _own_pair(seen, ring)
    right = own if twins is None else own | (seen & twins.reshape(seen.shape))
    return right, right.sum(axis=2)


def _own_pair(rows: Shaped[Array, "g k K"], ring: Ring) -> Bool[Array, "g k K"]:
    """Each pair's own place."""
    return jnp.arange(ring.group) == _own_column(rows, ring)


def _own_column(rows: Shaped[Array, "g k K"], ring: Ring) -> Int[Array, "g k 1"]:
    """The column of S of each of this device's pairs, its place in the group."""
    k = rows.shape[1]
    return jnp.broadcast_to(place(ring) * k + jnp.arange(k), rows.shape[:2])[..., None]


def _own(columns: Float[Array, "g K"], k: int, ring: Ring) -> Float[Array, "g k"]:
    """The columns of this device's pairs."""
    return lax.dynamic_slice_in_dim(columns, place(ring) * k, k, axis=1)


def gathered(own: Array, ring: Ring) -> Array:
    """[g, k] of this device -> [g, K] of the group."""
    return own if ring.size == 1 else lax.all_gather(own, RING, axis=1, tiled=True)


def place(ring: Ring) -> Int[Array, ""] | int:
    """This device's place in its ring."""
    return lax.axis_index(RING) if ring.size > 1 else 0


def pass_on(tree: PyTree, ring: Ring, platform: str) -> PyTree:
    """Sends `tree` to the next device of the ring; returns what the device before it sent."""
    send = functools.partial(
        lax.ppermute, axis_name=RING, perm=[(device, (device + 1) % ring.size) for device in range(ring.size)]
    )
    if platform != "tpu":
        return send(tree)
    # The TPU compiler has at most five sends on the way at once: a sixth starts only when the tile is done. Arrays of
    # one shape and type are therefore sent as one. The GPU compiler makes one send of all arrays by itself.
    leaves, form = jax.tree.flatten(tree)
    alike: dict[tuple[tuple[int, ...], jnp.dtype], list[Array]] = {}
    for leaf in leaves:
        alike.setdefault((leaf.shape, leaf.dtype), []).append(leaf)
    sent = {kind: iter(send(jnp.stack(arrays))) for kind, arrays in alike.items()}
    return jax.tree.unflatten(form, [next(sent[leaf.shape, leaf.dtype]) for leaf in leaves])


@functools.lru_cache(maxsize=32)
def _report_rows(temperature: float) -> Rows:
    def similarity(images: Array, reports: Array) -> Array:
        return jax.vmap(definition.report_similarity, in_axes=(0, 0, None))(images, reports, temperature)

    def grouped(images: Array, reports: Array, ring: Ring) -> tuple[Array, Array]:
        k = min(len(images), ring.group)
        images, reports = (array.reshape(-1, k, array.shape[-1]) for array in (images, reports))
        return images, gathered(reports, ring)

    def forward(images: Array, reports: Array, counts: Array, ring: Ring) -> Array:
        return similarity(*grouped(images, reports, ring))

    def backward(
        images: Array, reports: Array, counts: Array, rows: Array, d_rows: Array, ring: Ring
    ) -> tuple[Array, Array]:
        _, vjp = jax.vjp(similarity, *grouped(images, reports, ring))
        d_images, d_reports = vjp(d_rows)
        if ring.size > 1:
            d_reports = lax.psum_scatter(d_reports, RING, scatter_dimension=1, tiled=True)
        return d_images.reshape(images.shape), d_reports.reshape(reports.shape)

    return Rows(forward, backward)


@functools.lru_cache(maxsize=32)
def local_rows(settings: LossSettings, platform: str) -> Rows:
    """Rows of `definition.local_similarity`, computed by tiles.py for the captions of one device at a time."""

    def grouped(regions: Array, texts: tuple[Array, Array], counts: Array, ring: Ring) -> tuple[Array, Captions]:
        k = min(len(counts), ring.group)
        regions, units, norms, counts = (a.reshape(-1, k, *a.shape[1:]) for a in (regions, *texts, counts))
        text = Captions(units.astype(regions.dtype), norms, counts)
        text = text if settings.kernel == "pallas" else placed(text, settings, platform)
        return regions[:, None], text  # tiles.py: [g, p = 1, J, N, D]

    def forward(regions: Array, texts: tuple[Array, Array], counts: Array, ring: Ring) -> Array:
        regions, text = grouped(regions, texts, counts, ring)
        groups, _, k = regions.shape[:3]
        rows = jnp.zeros((groups, k, ring.size, k), texts[1].dtype)

        def step(number: Array, carry: tuple[Captions, Array]) -> tuple[Captions, Array]:
            text, rows = carry
            following = pass_on(text, ring, platform)  # before the tiles, so that sending and computing overlap
            block = tiles.tile_rows(regions, text, settings, platform)[:, 0]
            source = (place(ring) - number) % ring.size
            return following, lax.dynamic_update_index_in_dim(rows, block, source, axis=2)

        _, rows = lax.fori_loop(0, ring.size, step, (text, rows))
        return jnp.reshape(rows, (groups, k, ring.group))

    def backward(
        regions: Array, texts: tuple[Array, Array], counts: Array, rows: Array, d_rows: Array, ring: Ring
    ) -> tuple[Array, tuple[Array, Array]]:
        shape = regions.shape
        regions, text = grouped(regions, texts, counts, ring)
        groups, _, k = regions.shape[:3]
        rows, d_rows = (array.reshape(groups, 1, k, ring.size, k) for array in (rows, d_rows))
        wide = texts[1].dtype

        def step(number: Array, carry: PyTree) -> PyTree:
            text, d_regions, d_text = carry
            following, travelled = pass_on((text, d_text), ring, platform)
            source = (place(ring) - number) % ring.size
            block, d_block = (
                lax.dynamic_index_in_dim(array, source, axis=3, keepdims=False) for array in (rows, d_rows)
            )
            here = tiles.tile_gradients(regions, text, block, d_block, settings, platform, start=d_regions)
            return following, here.regions, jax.tree.map(jnp.add, travelled, (here.units, here.norms))

        nothing = (jnp.zeros(text.units.shape, wide), jnp.zeros(text.norms.shape, wide))
        start = text, jnp.zeros(regions.shape, wide), nothing
        _, d_regions, d_text = lax.fori_loop(0, ring.size, step, start)
        # The captions are back on their device; their gradients are one step behind.
        d_units, d_norms = pass_on(d_text, ring, platform)
        d_texts = d_units.reshape(texts[0].shape).astype(texts[0].dtype), d_norms.reshape(texts[1].shape)
        return d_regions.reshape(shape), d_texts

    return Rows(forward, backward)
