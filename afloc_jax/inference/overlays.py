"""Drawing of heat maps and boxes on images, and of masks as outlines."""

import base64

import cv2
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from data_pipelines.images import encode_png

# The colour scale is inferno (CC0, S. van der Walt and N. Smith): perceptually uniform, also in grey printing and for
# colour-blind readers.
COLORMAP = cv2.COLORMAP_INFERNO
OPACITY = 0.72  # at the maximum of the map; at its minimum it is 0, so that anatomy stays visible


def unit_scale(heatmap: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """The map [H, W] scaled to [0, 1] by its own minimum and maximum. A constant map becomes zeros."""
    low, high = float(heatmap.min()), float(heatmap.max())
    if not high > low:
        return np.zeros(heatmap.shape, np.float32)
    return ((heatmap - low) / (high - low)).astype(np.float32)


def overlay(image: UInt8[np.ndarray, "H W"], heatmap: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """A heat map blended into a grey image.

    Args:
        image: [H, W] uint8.
        heatmap: [H, W] float of any scale; its own range is spread over the colour scale.

    Returns:
        [H, W, 3] uint8 in BGR, the order of OpenCV.
    """
    if image.shape != heatmap.shape:
        raise ValueError(f"image {image.shape} and heat map {heatmap.shape} differ in size")
    heat = unit_scale(heatmap)
    colours = cv2.applyColorMap((255 * heat).astype(np.uint8), COLORMAP).astype(np.float32)
    grey = np.repeat(image[:, :, None], 3, axis=2).astype(np.float32)
    alpha = (OPACITY * heat)[:, :, None]
    return np.clip(grey * (1 - alpha) + colours * alpha + 0.5, 0, 255).astype(np.uint8)


def draw_boxes(picture: UInt8[np.ndarray, "H W 3"], boxes: Int[np.ndarray, "K 4"]) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of a BGR picture with boxes [K, 4] (x, y, width, height in pixels) drawn on it."""
    picture = picture.copy()
    thickness = max(1, round(max(picture.shape[:2]) / 400))
    for x, y, width, height in np.asarray(boxes, int).reshape(-1, 4):
        corners = (int(x), int(y)), (int(x + width) - 1, int(y + height) - 1)
        cv2.rectangle(picture, *corners, color=(220, 230, 60), thickness=thickness, lineType=cv2.LINE_AA)
    return picture


def outline_path(mask: Shaped[np.ndarray, "H W"]) -> str:
    """The border of a mask [H, W] as an SVG path in pixels. Holes are separate rings; an empty mask gives ""."""
    contours, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = []
    for contour in contours:
        points = contour[:, 0] + 0.5  # pixel centres
        rings.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z")
    return "".join(rings)


def png_uri(picture: UInt8[np.ndarray, "H W *C"]) -> str:
    """A picture as a data URI of a PNG, which keeps every value; see `jpeg_uri`."""
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()


def jpeg_uri(picture: UInt8[np.ndarray, "H W *C"], quality: int = 88) -> str:
    """A picture as a data URI of a JPEG, so that a page needs no other file."""
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def colour_scale(count: int = 10) -> list[str]:
    """Hex colours of the scale at `count` equal steps from low to high values, for legends."""
    steps = np.linspace(0, 255, count).astype(np.uint8)[None]
    return [f"#{r:02x}{g:02x}{b:02x}" for b, g, r in cv2.applyColorMap(steps, COLORMAP)[0]]
