"""Drawing tools: smooth curves, anti-aliased shapes, blurs and smooth noise on a 224 x 224 canvas.

Shapes are drawn on uint8 canvases of 224 (edges anti-aliased by OpenCV) or 448 pixels (averaged down afterwards);
coordinates are always pixels of the 224 x 224 image, whose pixel centres are whole numbers.
"""

import cv2
import numpy as np

SIZE = 224
_BITS = 4  # fractional bits of OpenCV's integer coordinates


def curve(points: np.ndarray, per_segment: int = 8, closed: bool = False) -> np.ndarray:
    """A Catmull-Rom curve [M, 2] through points [N, 2]."""
    points = np.asarray(points, float)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, per_segment, endpoint=False)[None, :, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    result = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3)
    result = result.reshape(-1, 2)
    return result if closed else np.concatenate([result, points[-1:]])


def bands(centers: np.ndarray, thickness: np.ndarray | float) -> np.ndarray:
    """Polygons [..., 2 N, 2] of ribbons around centre lines [..., N, 2]."""
    tangent = np.empty_like(centers)
    tangent[..., 1:-1, :] = centers[..., 2:, :] - centers[..., :-2, :]
    tangent[..., 0, :], tangent[..., -1, :] = tangent[..., 1, :], tangent[..., -2, :]
    length = np.hypot(tangent[..., 0], tangent[..., 1]) + 1e-6
    offset = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1) * (np.asarray(thickness) / (2 * length))[..., None]
    return np.concatenate([centers + offset, (centers - offset)[..., ::-1, :]], axis=-2)


def _fixed_point(points: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """Coordinates in OpenCV's fixed point, for a canvas of 224 or 448 pixels."""
    factor = canvas.shape[0] // SIZE
    return np.round(((points + 0.5) * factor - 0.5) * 2**_BITS).astype(np.int32)


def _smoothing(canvas: np.ndarray) -> int:
    return cv2.LINE_AA if canvas.shape[0] == SIZE else cv2.LINE_8


def fill(polygon: np.ndarray, canvas: np.ndarray | None = None, value: int = 255) -> np.ndarray:
    """Fills a polygon [N, 2] on a canvas (by default a new one of 224 pixels) and returns the canvas."""
    if canvas is None:
        canvas = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(canvas, [_fixed_point(polygon, canvas)], value, _smoothing(canvas), _BITS)
    return canvas


def disc(center: np.ndarray, radius: float, canvas: np.ndarray, value: int) -> None:
    """Fills a circle."""
    factor = canvas.shape[0] // SIZE
    x, y = _fixed_point(center, canvas).tolist()
    cv2.circle(canvas, (x, y), round(radius * factor * 2**_BITS), value, -1, _smoothing(canvas), _BITS)


def strokes(lines: np.ndarray, canvas: np.ndarray, value: int, thickness: float) -> None:
    """Open lines [K, N, 2], `thickness` in pixels of the image (whole pixels of the canvas, at least one)."""
    width = max(1, round(thickness * (canvas.shape[0] // SIZE)))
    cv2.polylines(canvas, list(_fixed_point(lines, canvas)), False, value, width, _smoothing(canvas), _BITS)


def soft(canvas: np.ndarray, sigma: float = 0.0) -> np.ndarray:
    """A canvas as float32 0..1 of 224 x 224, blurred."""
    if canvas.shape[0] != SIZE:
        canvas = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    result = canvas.astype(np.float32) * np.float32(1 / 255)
    return blur(result, sigma) if sigma else result


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur, at a quarter of the size if it is wide."""
    if sigma > 6:
        small = cv2.resize(image, (SIZE // 4, SIZE // 4), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / 4, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def depth_inside(canvas: np.ndarray) -> np.ndarray:
    """Distance in pixels of the canvas to the nearest pixel outside the shape, float32."""
    return cv2.distanceTransform((canvas > 127).astype(np.uint8), cv2.DIST_L2, 3)


def step(x: np.ndarray) -> np.ndarray:
    """Soft step from 0 to 1, float32: 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30).astype(np.float32)))


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth random field [224, 224], about unit variance, with `cells` independent values along a side."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    scale = SIZE / cells
    fine = cv2.resize(coarse, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    offset = int(scale)
    return fine[offset : offset + SIZE, offset : offset + SIZE]
