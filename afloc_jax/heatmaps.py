"""Heat maps from region and prompt embeddings: similarity, Gaussian filter, bilinear upsampling.

The filter and the upsampling are linear and separable, so each is one small matrix per axis. They are applied by matrix
products, on any device and to whole batches. The matrices are computed once, on the host in float64.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Shaped

from afloc_jax.interpolation import resize, strided_cells, tiles
from afloc_jax.levels import TextLevels
from afloc_jax.settings import NOT_NEGATIVE, POSITIVE, Rule, Settings, setting
from data_pipelines.constants import IMAGE_SIZE

AnyArray = Array | np.ndarray

SIGMA = 1.5  # width of the published filter, in cells of the 19 x 19 grid
EXTENT = 0.01  # share of regions for which the step of a presence map lies at its threshold
EXTENT_SHARPNESS = 5.0  # steepness of the step that counts regions, as a multiple of the map's step
SHARPEN_AT = 2.0  # middle of the step of a sharpened map, in standard deviations above its mean
SHARPEN_STEEPNESS = 1.0  # slope of that step, per standard deviation
SHARPEN_LINEAR = 0.01  # share of the map itself, so that float32 tells apart what the step makes nearly equal


@dataclass(frozen=True)
class HeatmapSettings(Settings, section="localization"):
    """How embeddings become a heat map. The defaults are the published ones.

    Attributes:
        sigma: the width of the Gaussian filter, in cells of a 19 x 19 grid; 0 turns the filter off.
        cells: where the cells of the deep map lie: "tiles" of the image, or centred on their "receptive_field".
        prompt_level: the query: the "report" embedding of the prompt, or the mean of its "sentence" embeddings.
        similarity: "dot" product, or "presence" (see `presence_map`).
        presence_sharpness: the slope of the step of a presence map.
        presence_threshold: the cosine at the middle of that step.
        presence_growth: the decrease of that cosine for every doubling of the finding's extent.
        sharpen: whether maps are sharpened (see `sharpened`), which is not part of the published recipe.
    """

    sigma: float = setting(SIGMA, NOT_NEGATIVE)
    cells: Literal["tiles", "receptive_field"] = "tiles"
    prompt_level: Literal["report", "sentence"] = "report"
    similarity: Literal["dot", "presence"] = "dot"
    presence_sharpness: float = setting(8.0, POSITIVE)
    presence_threshold: float = setting(0.5, Rule(lambda cosine: -1 < cosine < 1, "a cosine, between -1 and 1"))
    presence_growth: float = setting(0.0, NOT_NEGATIVE)
    sharpen: bool = False

    def query(self, texts: TextLevels) -> Float[AnyArray, "B D"]:
        """The query of the heat map: the report embedding of each prompt (published), or the mean of its sentences.

        In training the deep map is contrasted with sentences. The report embedding also contains `[CLS]` and `[SEP]`,
        which add nearly the same map to every prompt. Takes and returns JAX or NumPy arrays.
        """
        if self.prompt_level == "report":
            return texts.report
        slot = np.arange(texts.sentences.shape[1])
        chosen = ((slot > 0) & (slot < texts.sentence_count[:, None])).astype(np.float32)
        return (chosen[..., None] * texts.sentences).sum(axis=1) / chosen.sum(axis=1, keepdims=True).clip(1)

    def map(
        self, regions: Float[AnyArray, "*b h w D"], text: Float[AnyArray, "*c D"], size: int, input_size: int
    ) -> Float[Array, "*d size size"]:
        """Un-normalised heat maps of side `size`. `input_size` is the side of the network's input in pixels."""
        if self.similarity == "presence":
            cells = presence_map(regions, text, self.presence_sharpness, self.presence_threshold, self.presence_growth)
        else:
            cells = similarity_map(regions, text)
        cells = smooth(cells, scaled_sigma(regions.shape[-2], self.sigma))
        whole = upsample(cells, size, input_size if self.cells == "receptive_field" else None)
        return sharpened(whole) if self.sharpen else whole


def similarity_map(regions: Float[AnyArray, "*b h w D"], text: Float[AnyArray, "*c D"]) -> Float[Array, "*d h w"]:
    """The dot product of every region with the query (as published, not the cosine). Leading axes broadcast.

    Raises ValueError where the widths differ.

    >>> regions = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # one row of two regions
    >>> similarity_map(regions, np.array([0.5, 1.0]))
    Array([[0.5, 2. ]], dtype=float32)
    """
    if regions.shape[-1] != text.shape[-1]:
        raise ValueError(f"regions are {regions.shape[-1]} wide and the text {text.shape[-1]}; they must be equal")
    return jnp.einsum("...hwd,...d->...hw", regions, text, precision=jax.lax.Precision.HIGHEST)


def presence_map(
    regions: Float[AnyArray, "*b h w D"],
    text: Float[AnyArray, "*c D"],
    sharpness: float,
    threshold: float,
    growth: float = 0.0,
) -> Float[Array, "*d h w"]:
    """A soft step of the cosine c of every region with the query, in (0, 1). It is not part of the published recipe.

        map = 1 / (1 + exp(-sharpness (c - step)))        step = threshold - growth log2(e / 0.01)

    All regions far above the step have nearly the same value, so that one region with a large cosine does not push the
    others below every threshold. A zero vector has cosine 0.

    e is the extent of the finding: the share of regions whose cosine exceeds `threshold`. With `growth` the step is
    higher for small findings, which appear wider than they are because receptive fields overlap, and lower for large
    ones, of which a network marks only the most distinctive parts. e counts regions by a step that is
    EXTENT_SHARPNESS times as steep, plus half a region, so that it has a gradient and is never 0.
    """
    norms = jnp.linalg.norm(regions, axis=-1) * jnp.linalg.norm(text, axis=-1)[..., None, None]
    cosine = similarity_map(regions, text) / jnp.where(norms > 0, norms, 1)
    step: Array | float = threshold
    if growth:
        standing_out = jax.nn.sigmoid(EXTENT_SHARPNESS * sharpness * (cosine - threshold)).sum((-2, -1), keepdims=True)
        extent = (standing_out + 0.5) / (cosine.shape[-2] * cosine.shape[-1])
        step = threshold - growth * jnp.log2(extent / EXTENT)
    return jax.nn.sigmoid(sharpness * (cosine - step))


def scaled_sigma(cells: int, sigma: float = SIGMA, reference_cells: int = 19) -> float:
    """The width of the filter in cells of a grid of `cells`, covering the same part of the image as `sigma`."""
    return sigma * cells / reference_cells


@lru_cache(maxsize=64)
def _gaussian_matrix(cells: int, sigma: float) -> Float[np.ndarray, "cells cells"]:
    # The filter of SciPy, whose import would take a tenth of a second: borders are reflected, 4 sigma are the end.
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2) if reach else np.ones(1)
    reflected = np.pad(np.eye(cells), ((reach, reach), (0, 0)), mode="symmetric")
    matrix = sum(weight * reflected[start : start + cells] for start, weight in enumerate(weights / weights.sum()))
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=64)
def _bilinear_matrix(cells: int, size: int, input_size: int | None = None) -> Float[np.ndarray, "size cells"]:
    if input_size is None:
        matrix = tiles(cells, size)
    else:
        stride = 1 << max(0, int(np.ceil(np.log2(input_size / cells) - 1e-9)))
        if -(-input_size // stride) != cells:
            raise ValueError(f"{cells} cells of a side of {input_size} pixels are no power-of-two stride")
        matrix = strided_cells(cells, stride, size, input_size)
    matrix.setflags(write=False)
    return matrix


def _separable(
    map: Float[AnyArray, "*b h w"], rows: Float[np.ndarray, "H h"], columns: Float[np.ndarray, "W w"]
) -> Float[Array, "*b H W"]:
    map = jnp.asarray(map)
    if not jnp.issubdtype(map.dtype, jnp.floating) or map.dtype.itemsize < 4:
        map = map.astype(jnp.float32)  # bfloat16 would round the filter's weights
    return resize(map, rows, columns)


def smooth(map: Float[AnyArray, "*b h w"], sigma: float = SIGMA) -> Float[Array, "*b h w"]:
    """A Gaussian filter over the last two axes, `sigma` in cells; equal to `scipy.ndimage.gaussian_filter` (reflect).

    Raises ValueError for a negative `sigma`.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma is {sigma}; it must be 0 (no filter) or more, in cells of the map")
    height, width = map.shape[-2:]
    return _separable(map, _gaussian_matrix(height, float(sigma)), _gaussian_matrix(width, float(sigma)))


def upsample(
    map: Float[AnyArray, "*b h w"], size: int | tuple[int, int] = IMAGE_SIZE, input_size: int | None = None
) -> Float[Array, "*b H W"]:
    """Bilinear upsampling of the last two axes, as PyTorch's `interpolate` with `align_corners=False`.

    As published, the cells are taken for equal tiles of the image. However, a network of stride s centres cell k on
    pixel k s of its input, so that such a map is shifted by up to s / 2 pixels to the right and down. With
    `input_size`, the side of the network's input, every cell is placed at the centre of its receptive field.

    Raises ValueError for a size below 1, or cells that do not fit `input_size`.
    """
    target_height, target_width = (size, size) if isinstance(size, int) else size
    if target_height < 1 or target_width < 1:
        raise ValueError(f"size is {size}; a heat map needs at least 1 x 1 pixels")
    height, width = map.shape[-2:]
    rows = _bilinear_matrix(height, target_height, input_size)
    return _separable(map, rows, _bilinear_matrix(width, target_width, input_size))


def cell_means(
    mask: Shaped[np.ndarray, "*b H W"], cells: tuple[int, int], input_size: int | None = None
) -> Float[np.ndarray, "*b h w"]:
    """The mean of a mask around each of h x w cells, in which a pixel weighs what the cell weighs in it by `upsample`.

    It is the transpose of that upsampling, divided by the sum of the weights. `input_size`: see `upsample`.

    >>> cell_means(np.array([[0, 0, 1, 1]] * 4), (2, 2))
    array([[0.125, 0.875],
           [0.125, 0.875]])
    """
    rows, columns = (
        _bilinear_matrix(count, side, input_size) for count, side in zip(cells, mask.shape[-2:], strict=True)
    )
    rows, columns = (matrix / matrix.sum(axis=0) for matrix in (rows, columns))
    return np.asarray(rows.T @ mask @ columns)


def normalise(map: Float[AnyArray, "*b h w"], low: float = 0.0, high: float = 1.0) -> Float[AnyArray, "*b h w"]:
    """The map scaled to [low, high] by its minimum and maximum over the last two axes. A constant map becomes `low`.

    Takes and returns JAX or NumPy arrays; NumPy arrays stay on the host in their precision.

    >>> normalise(np.array([[2.0, 4.0], [6.0, 4.0]]), -1, 1)
    array([[-1.,  0.],
           [ 1.,  0.]])
    """
    smallest = map.min(axis=(-2, -1), keepdims=True)
    span = map.max(axis=(-2, -1), keepdims=True) - smallest
    return (map - smallest) / (span + (span == 0)) * (high - low) + low


def sharpened(
    map: Float[AnyArray, "*b h w"], at: float = SHARPEN_AT, steepness: float = SHARPEN_STEEPNESS
) -> Float[Array, "*b h w"]:
    """The map m with a step between its background and what stands out; its range and its peaks stay.

        step = 1 / (1 + exp(-k ((m - mean) / std - s)))        with s = `at`, k = `steepness`
        map = min + (max - min) ((1 - l) [step] + l [m])       with l = SHARPEN_LINEAR, [x] = x scaled to [0, 1]

    mean, std, min and max are those of each map. The defaults are the same for all data and models. The step is that of
    KAF-Ground (2026), a sigmoid centred at mean + s std, there with s = 1; std is its unit here, because maps of
    different models have different scales. A constant map stays as it is.
    """
    map = jnp.asarray(map)
    if not jnp.issubdtype(map.dtype, jnp.floating):
        map = map.astype(jnp.float32)
    axes = (-2, -1)
    low, mean, deviation = (f(map, axis=axes, keepdims=True) for f in (jnp.min, jnp.mean, jnp.std))
    step = normalise(jax.nn.sigmoid(steepness * ((map - mean) / jnp.where(deviation > 0, deviation, 1) - at)))
    span = map.max(axis=axes, keepdims=True) - low
    return low + span * ((1 - SHARPEN_LINEAR) * step + SHARPEN_LINEAR * normalise(map))


def boxes_from_map(
    map01: Shaped[np.ndarray, "H W"], threshold: float, minimum_pixels: int = 1
) -> Int[np.ndarray, "K 4"]:
    """Boxes around the connected regions of `map01 > threshold`, the largest region first.

    The result is x, y, width, height. The threshold applies to the map as it is (see `normalise`). Pixels
    that share a side are connected; pixels that share only a corner are not. Regions of fewer than `minimum_pixels`
    are left out. Raises ValueError unless the map is [H, W].

    >>> heatmap = np.zeros((4, 6))
    >>> heatmap[1:3, 1:4] = 0.9
    >>> heatmap[0, 5] = 0.7
    >>> boxes_from_map(heatmap, threshold=0.5)
    array([[1, 1, 3, 2],
           [5, 0, 1, 1]])
    """
    map01 = np.asarray(map01)
    if map01.ndim != 2:
        raise ValueError(f"boxes are drawn on one map [height, width]; got an array of shape {map01.shape}")
    mask = (map01 > threshold).view(np.uint8)
    outlines, nested = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if any(_meets_at_a_corner(mask, outline[:, 0]) for outline in outlines):  # outlines join what shares a corner
        parts = cv2.connectedComponentsWithStats(mask, connectivity=4)[2][1:].astype(int)  # x, y, width, height, pixels
        parts = parts[parts[:, cv2.CC_STAT_AREA] >= minimum_pixels]
        return parts[np.argsort(-parts[:, cv2.CC_STAT_AREA], kind="stable"), :4]
    # Outlines take a tenth of the time of labels: a film has millions of pixels, and its regions some thousand at the
    # border. Pick's theorem counts the others.
    areas = [_pixels_within(outline, nested[0, k, 3] >= 0) for k, outline in enumerate(outlines)]
    regions = []
    for k, outline in enumerate(outlines):
        outer = int(nested[0, k, 3])
        if outer >= 0:
            areas[outer] -= areas[k]
        else:
            regions.append((k, *outline[0, 0].tolist()[::-1]))  # it starts at its first pixel from above
    found = sorted((-areas[k], row, column, k) for k, row, column in regions if areas[k] >= minimum_pixels)
    return np.array([cv2.boundingRect(outlines[k]) for *_, k in found], int).reshape(-1, 4)


def _pixels_within(outline: Int[np.ndarray, "N 1 2"], is_hole: bool) -> int:
    """The pixels of a region whose border pixels are given in their order, or those of a hole that they enclose.

    Pick's theorem for lattice points: enclosed + border = area + border / 2 + 1, also where the border passes a pixel
    twice, and enclosed = area - border / 2 + 1.
    """
    steps = len(outline) if len(outline) > 1 else 0
    half = -steps / 2 if is_hole else steps / 2
    return round(cv2.contourArea(outline) + half + 1)


def _meets_at_a_corner(mask: Integer[np.ndarray, "H W"], outline: Int[np.ndarray, "N 2"]) -> bool:
    """Whether two neighbours of a closed outline share a corner, and no pixel of the mask shares a side with both."""
    following = np.roll(outline, -1, axis=0)
    slanted = (outline != following).all(axis=1)
    (x, y), (next_x, next_y) = outline[slanted].T, following[slanted].T
    return bool(((mask[y, next_x] == 0) & (mask[next_y, x] == 0)).any())
