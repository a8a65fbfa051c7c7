"""The sigmoid objective of definition.py with its gradient, in one visit of each tile, on one device or around a ring.

The loss is a sum over pairs, without a sum over the whole group inside a logarithm. Where a tile of captions has been
compared with its images, the gradient of their similarities is therefore known, and the tile gives it at once: with
z = 1 for a right pair and -1 for a wrong one, w = (q_i + q_j) / 2 and S that of `definition.local_similarity`,

    x = (S / temp3 - log T_i) / temp2        l = exp(t') x + b        loss = sum w log(1 + exp(-z l))
    dS = -w z sigmoid(-z l) exp(t') / (temp2 temp3)

So the forward pass computes the gradients too (tiles.rows_and_gradients), and the backward pass multiplies them by the
gradient of the loss. A tile takes 6 matrix products instead of 2 + 6, and captions go around the ring once instead of
twice, their gradient one step behind them as in ring.py. Between the passes the gradients take the place of the
regions. Where no gradient is asked for, as in validation, only the 2 products of the similarities are computed.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from afloc_jax.losses import definition, tiled
from afloc_jax.losses.bins import placed
from afloc_jax.losses.definition import Scale, mean_relevance, shares
from afloc_jax.losses.low_rank import project, pull_back
from afloc_jax.losses.packing import Captions
from afloc_jax.losses.ring import GROUP, PAIRS, RING, Ring, gathered, local_rows, pass_on, place
from afloc_jax.losses.settings import LossSettings, Twins
from afloc_jax.losses.tiles import rows_and_gradients


class _Inputs(NamedTuple):
    """What the loss is differentiated by."""

    images: Float[Array, "B *N F"]
    units: Float[Array, "B *T D"]
    norms: Float[Array, "B T"] | None
    scale: Scale
    projection: Float[Array, "F D"] | None = None


class _Pairs(NamedTuple):
    """What it is not."""

    counts: Int[Array, " B"]
    share: Float[Array, " B"]
    twins: Bool[Array, "B K"] | None


class _Visit(NamedTuple):
    """`value(inputs, pairs)` is the loss, `both` the loss and its gradients by the inputs."""

    value: Callable[[_Inputs, _Pairs], Array]
    both: Callable[[_Inputs, _Pairs], tuple[Array, _Inputs]]


def ring_loss(
    regions: Float[Array, "B N F"],
    units: Float[Array, "B T D"],
    norms: Float[Array, "B T"],
    counts: Int[Array, " B"],
    scale: Scale,
    ring: Ring,
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
    projection: Float[Array, "F D"] | None = None,
    twins: Bool[Array, "B K"] | None = None,
) -> Float[Array, ""]:
    """`definition.sigmoid_contrast` of the word or sentence level. Arguments are those of `ring.local_losses`."""
    pairs = _Pairs(counts, shares(counts > 0, weights, norms.dtype), twins)
    visit = _around(settings, ring, ring.mesh.devices.flat[0].platform)
    return _loss(visit, _Inputs(regions, units, norms, scale, projection), pairs)


def ring_report_loss(
    images: Float[Array, "B D"],
    reports: Float[Array, "B D"],
    counts: Int[Array, " B"],
    scale: Scale,
    ring: Ring,
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
    twins: Bool[Array, "B K"] | None = None,
) -> Float[Array, ""]:
    """That of the report level; all devices gather all reports."""
    wide = jnp.promote_types(images.dtype, jnp.float32)
    pairs = _Pairs(counts, shares(counts > 0, weights, wide), twins)
    return _loss(_reports(settings, ring), _Inputs(images.astype(wide), reports.astype(wide), None, scale), pairs)


def tiled_loss(
    regions: Float[Array, "G K N F"],
    units: Float[Array, "G K T D"],
    norms: Float[Array, "G K T"],
    counts: Int[Array, "G K"],
    scale: Scale,
    settings: LossSettings,
    weights: Float[Array, "G K"] | None = None,
    twins: Bool[Array, "G K K"] | None = None,
    projection: Float[Array, "F D"] | None = None,
    devices: int | None = None,
    platform: str | None = None,
) -> Float[Array, ""]:
    """That of a local level within each of G contrast groups. `devices`, `platform`: see `tiled.grouped_similarity`."""
    tiling = tiled.Tiling.of(regions.shape[0], regions.shape[1], settings, devices, platform)
    pairs = _Pairs(counts, shares(counts > 0, weights, norms.dtype), twins)
    return _loss(_in_tiles(settings, tiling), _Inputs(regions, units, norms, scale, projection), pairs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(visit: _Visit, inputs: _Inputs, pairs: _Pairs) -> Float[Array, ""]:
    return visit.value(inputs, pairs)


def _forward(visit: _Visit, inputs: _Inputs, pairs: _Pairs) -> tuple[Float[Array, ""], _Inputs]:
    return visit.both(inputs, pairs)


def _backward(visit: _Visit, gradients: _Inputs, d_loss: Float[Array, ""]) -> tuple[_Inputs, None]:
    return jax.tree.map(lambda gradient: (gradient * d_loss).astype(gradient.dtype), gradients), None


_loss.defvjp(_forward, _backward)


class _Terms(NamedTuple):
    """The weight of each pair in the loss, 0 where it is left out, and whether it is right (1) or wrong (-1)."""

    weight: Float[Array, "g k K"]
    sign: Float[Array, "g k K"]

    @classmethod
    def of(
        cls,
        rows: tuple[Bool[Array, "g k"], Float[Array, "g k"]],
        columns: tuple[Bool[Array, "g K"], Float[Array, "g K"]],
        first: Int[Array, ""] | int,
        twins: Bool[Array, "g k K"] | None,
        treatment: Twins,
    ) -> "_Terms":
        """`rows` and `columns` say of images and captions which are included, and their shares; `first` is the column
        of the first image."""
        (included, share), (captions, shares) = rows, columns
        own = first + jnp.arange(share.shape[1])[:, None] == jnp.arange(shares.shape[1])
        seen, right = included[:, :, None] & captions[:, None], jnp.broadcast_to(own, (*share.shape, shares.shape[1]))
        if twins is not None and treatment == "mask":
            seen = seen & (own | ~twins)
        if twins is not None and treatment == "share":
            right = own | twins
        weight = jnp.where(seen, (share[:, :, None] + shares[:, None]) / 2, 0)
        return cls(weight, jnp.where(right, 1, -1).astype(weight.dtype))

    def loss(self, relevance: Float[Array, "g k K"], scale: Scale) -> Float[Array, ""]:
        return (self.weight * jax.nn.softplus(-self.sign * scale.logits(relevance))).sum()


class _Side(NamedTuple):
    """The captions of all devices of a ring, or the images of one, by group."""

    counts: Int[Array, "g k"]
    share: Float[Array, "g k"]

    def part(self, number: Int[Array, ""] | int, size: int) -> "_Side":
        """Those of one device."""
        return _Side(*(lax.dynamic_slice_in_dim(array, number * size, size, axis=1) for array in self))

    @property
    def included(self) -> tuple[Bool[Array, "g k"], Float[Array, "g k"]]:
        return self.counts > 0, self.share


class _Sides(NamedTuple):
    """The images of this device, the captions of all, and which of these are twins of the images."""

    images: _Side
    captions: _Side
    twins: Bool[Array, "g k K"] | None

    @classmethod
    def of(cls, pairs: _Pairs, ring: Ring) -> "_Sides":
        k = min(len(pairs.counts), ring.group)
        counts, share = (array.reshape(-1, k) for array in (pairs.counts, pairs.share))
        twins = None if pairs.twins is None else pairs.twins.reshape(-1, k, ring.group)
        return cls(_Side(counts, share), _Side(gathered(counts, ring), gathered(share, ring)), twins)

    def terms(self, ring: Ring, treatment: Twins) -> _Terms:
        """Those of the images with all captions of their groups."""
        first = place(ring) * self.images.counts.shape[1]
        return _Terms.of(self.images.included, self.captions.included, first, self.twins, treatment)

    def of_captions(self, source: Int[Array, ""], ring: Ring, treatment: Twins) -> Float[Array, "c g 1 k k"]:
        """`_of_captions` of the images with the captions of device `source`.

        They are made for one device at a time: for all, they are three numbers for every image and caption.
        """
        k = self.images.counts.shape[1]
        captions = self.captions.part(source, k)
        twins = None if self.twins is None else lax.dynamic_slice_in_dim(self.twins, source * k, k, axis=2)
        first = (place(ring) - source) * k
        terms = _Terms.of(self.images.included, captions.included, first, twins, treatment)
        return _of_captions(terms, captions.counts)[:, :, None]


def _value_and_scale_gradient(
    terms: _Terms, rows: Float[Array, "g k K"], counts: Int[Array, "g K"], scale: Scale, settings: LossSettings
) -> tuple[Float[Array, ""], Scale]:
    relevance = mean_relevance(rows, counts[:, None], settings)
    return jax.value_and_grad(functools.partial(terms.loss, relevance))(scale)


def d_rows(scale: Scale, settings: LossSettings) -> Callable[[Array, Array], Array]:
    """dS of `tiles.rows_and_gradients`, from the weight, the sign and the number of units of each pair's caption."""

    def gradient(similarity: Array, of_captions: Array) -> Array:
        weight, sign, counts = of_captions
        logits = scale.logits(mean_relevance(similarity, counts, settings))
        slope = jnp.exp(scale.log_temperature) / (settings.pooling_temperature * settings.contrast_temperature)
        found: Array = -weight * sign * jax.nn.sigmoid(-sign * logits) * slope
        return found

    return gradient


def _of_captions(terms: _Terms, counts: Int[Array, "g K"]) -> Float[Array, "c g k K"]:
    units = jnp.broadcast_to(counts[:, None], terms.weight.shape).astype(terms.weight.dtype)
    return jnp.stack([terms.weight, terms.sign, units])


def _summed(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda own: lax.psum(own, (GROUP, RING)), tree)


_REPLICATED = PartitionSpec()
_SPECS: PyTree = (PAIRS, PAIRS, PAIRS, _REPLICATED, _REPLICATED)
_INPUTS = _Inputs(*_SPECS)


def _on_devices(function: Callable[..., PyTree], ring: Ring, out_specs: PyTree) -> Callable[..., PyTree]:
    """`function(inputs, pairs)` on every device."""
    in_specs = _INPUTS, PAIRS
    return jax.shard_map(function, mesh=ring.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


@functools.lru_cache(maxsize=32)
def _around(settings: LossSettings, ring: Ring, platform: str) -> _Visit:
    """A local level over a ring of devices of a kind."""

    def value(inputs: _Inputs, pairs: _Pairs) -> Array:
        sides = _Sides.of(pairs, ring)
        terms, counts = sides.terms(ring, settings.twins), sides.captions.counts
        regions = project(inputs.images, inputs.projection)
        texts = inputs.units, inputs.norms
        rows = local_rows(settings, platform).forward(regions, texts, jnp.maximum(pairs.counts, 1), ring)
        loss: Array = _summed(terms.loss(mean_relevance(rows, counts[:, None], settings), inputs.scale))
        return loss

    def both(inputs: _Inputs, pairs: _Pairs) -> tuple[Array, _Inputs]:
        sides = _Sides.of(pairs, ring)
        assert inputs.norms is not None
        wide, k = inputs.norms.dtype, min(len(pairs.counts), ring.group)
        made = project(inputs.images, inputs.projection)
        regions, units, norms, own = (
            array.reshape(-1, k, *array.shape[1:])
            for array in (made, inputs.units, inputs.norms, jnp.maximum(pairs.counts, 1))
        )
        regions = regions[:, None]  # tiles.py: [g, p = 1, J, N, D]
        text = placed(Captions(units.astype(regions.dtype), norms, own), settings, platform)

        def step(number: Array, carry: PyTree) -> PyTree:
            text, d_regions, d_text, rows = carry
            following, travelled = pass_on((text, d_text), ring, platform)
            source = (place(ring) - number) % ring.size
            of_captions = sides.of_captions(source, ring, settings.twins)
            block, here = rows_and_gradients(
                regions, text, of_captions, d_rows(inputs.scale, settings), settings, platform, start=d_regions
            )
            rows = lax.dynamic_update_index_in_dim(rows, block[:, 0], source, axis=2)
            return following, here.regions, jax.tree.map(jnp.add, travelled, (here.units, here.norms)), rows

        nothing = (jnp.zeros(units.shape, wide), jnp.zeros(norms.shape, wide))
        start = text, jnp.zeros(regions.shape, wide), nothing, jnp.zeros((len(own), k, ring.size, k), wide)
        _, d_regions, d_text, rows = lax.fori_loop(0, ring.size, step, start)
        # The captions are back on their device; their gradients are one step behind.
        d_units, d_norms = pass_on(d_text, ring, platform)
        terms, counts = sides.terms(ring, settings.twins), sides.captions.counts
        loss, d_scale = _value_and_scale_gradient(
            terms, rows.reshape(terms.weight.shape), counts, inputs.scale, settings
        )
        d_images, d_projection = pull_back(inputs.images, inputs.projection, d_regions.reshape(made.shape))
        loss, d_scale, d_projection = _summed((loss, d_scale, d_projection))
        return loss, _gradients(inputs, d_images, d_units, d_norms, d_scale, d_projection)

    return _Visit(
        _on_devices(value, ring, _REPLICATED),
        _on_devices(both, ring, (_REPLICATED, _INPUTS)),
    )


@functools.lru_cache(maxsize=32)
def _reports(settings: LossSettings, ring: Ring) -> _Visit:
    """The report level over a ring."""

    def loss(images: Array, reports: Array, scale: Scale, terms: _Terms) -> Array:
        relevance = jax.vmap(definition.report_similarity, in_axes=(0, 0, None))(images, reports, 1.0)
        return terms.loss(relevance, scale)

    def given(inputs: _Inputs, pairs: _Pairs) -> tuple[Array, Array, Scale, _Terms]:
        k = min(len(inputs.images), ring.group)
        images, reports = (array.reshape(-1, k, array.shape[-1]) for array in (inputs.images, inputs.units))
        return images, gathered(reports, ring), inputs.scale, _Sides.of(pairs, ring).terms(ring, settings.twins)

    def value(inputs: _Inputs, pairs: _Pairs) -> Array:
        found: Array = _summed(loss(*given(inputs, pairs)))
        return found

    def both(inputs: _Inputs, pairs: _Pairs) -> tuple[Array, _Inputs]:
        found, (d_images, d_reports, d_scale) = jax.value_and_grad(loss, (0, 1, 2))(*given(inputs, pairs))
        if ring.size > 1:
            d_reports = lax.psum_scatter(d_reports, RING, scatter_dimension=1, tiled=True)
        found, d_scale = _summed((found, d_scale))
        return found, _gradients(inputs, d_images, d_reports, None, d_scale, None)

    return _Visit(
        _on_devices(value, ring, _REPLICATED),
        _on_devices(both, ring, (_REPLICATED, _INPUTS)),
    )


@functools.lru_cache(maxsize=32)
def _in_tiles(settings: LossSettings, tiling: tiled.Tiling) -> _Visit:
    """A local level on the devices that jit shards the batch over, as in tiled.py."""

    def terms_of(pairs: _Pairs) -> _Terms:
        side = pairs.counts > 0, pairs.share
        return _Terms.of(side, side, 0, pairs.twins, settings.twins)

    def value(inputs: _Inputs, pairs: _Pairs) -> Array:
        rows = tiled.grouped_similarity(
            inputs.images, inputs.units, pairs.counts, settings, inputs.norms, inputs.projection,
            tiling.groups * tiling.devices, tiling.platform,
        )  # fmt: skip
        relevance = mean_relevance(rows, pairs.counts[:, None], settings)
        return terms_of(pairs).loss(relevance, inputs.scale)

    def both(inputs: _Inputs, pairs: _Pairs) -> tuple[Array, _Inputs]:
        assert inputs.norms is not None
        terms, wide = terms_of(pairs), inputs.norms.dtype
        regions = project(inputs.images, inputs.projection)
        text = Captions(inputs.units, inputs.norms, jnp.maximum(pairs.counts, 1))

        def some_groups(step: tuple[Array, Captions, Array]) -> tuple[Array, PyTree]:
            regions, text, of_captions = step
            rows, here = rows_and_gradients(
                regions, text, of_captions, d_rows(inputs.scale, settings), settings, tiling.platform,
                start=jnp.zeros(regions.shape, wide),
            )  # fmt: skip
            return rows, (here.regions, here.units, here.norms)

        of_captions = jax.vmap(lambda array: tiled.split(array, tiling), out_axes=1)(_of_captions(terms, pairs.counts))
        steps = tiled.split(regions, tiling), tiled.captions_by_step(text, regions, tiling), of_captions
        rows, gradients = lax.map(some_groups, steps)
        rows, d_regions, d_units, d_norms = (
            jnp.moveaxis(array, 0, 1).reshape(like.shape)
            for array, like in zip((rows, *gradients), (terms.weight, regions, inputs.units, inputs.norms), strict=True)
        )
        loss, d_scale = _value_and_scale_gradient(terms, rows, pairs.counts, inputs.scale, settings)
        d_images, d_projection = pull_back(inputs.images, inputs.projection, d_regions)
        return loss, _gradients(inputs, d_images, d_units, d_norms, d_scale, d_projection)

    return _Visit(value, both)


def _gradients(
    inputs: _Inputs,
    images: Array,
    units: Array,
    norms: Array | None,
    scale: Scale,
    projection: Array | None,
) -> _Inputs:
    """The gradients in the shapes and types of the inputs."""
    found = _Inputs(images, units, norms, scale, projection)
    as_given: _Inputs = jax.tree.map(
        lambda gradient, given: gradient.reshape(given.shape).astype(given.dtype), found, inputs
    )
    return as_given
