"""Pictures of a localisation that explain themselves: the map on the image, and below it what was asked and found.

Nothing is written on the image, so that side markers stay as they are. Where the map is below the threshold the image
is clear; above it the colours run from the threshold to the highest value of the map. They are the upper part of
inferno, whose lightness grows evenly: it is read in grey print and by colour-blind readers. Maps that are compared
share one bar. Boxes are sky blue of the palette of Okabe and Ito (2008), on a dark edge.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import cv2
import numpy as np
from jaxtyping import Float, Real, UInt8
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.images import Geometry

MOST_SIDE = 1024  # pixels of a small picture
_NARROWEST = 420  # pixels that a caption needs
OPACITY = 0.35, 0.6  # at the lowest and at the highest value of the colour bar
_COLOURS = 0.38, 0.9  # the part of inferno: what is darker is lost on a film, and what is lighter on bone
_PAPER, _INK, _FAINT, _WARNING = (16, 16, 18), (240, 240, 240), (168, 170, 174), (240, 200, 90)
BOX = (86, 180, 233)
_OUTLINE = 60  # the colour of the bar that lines regions have
_LETTERS = 250  # more than a line of a caption holds: its widest has room for some 170 of the narrowest letters
_ROWS = 256  # of the picture that are blended at a time: a film as a whole would take a gigabyte


@dataclass(frozen=True)
class Caption:
    """What is written below an image.

    Attributes:
        title: the prompt.
        facts: short statements, such as "score 0.63", which share lines.
        warnings: sentences of which each has its own line.
        lowest, highest: the values at the ends of the colour bar: the threshold and the maximum of the map.
        cut: the threshold, where the bar begins at another value because several maps share it.
    """

    title: str
    facts: Sequence[str]
    warnings: Sequence[str]
    lowest: float
    highest: float
    cut: float | None = None


class Placed(NamedTuple):
    """What is drawn on an image."""

    square: Float[np.ndarray, "S S"]  # the map of the padded square
    geometry: Geometry  # where the image lies in the square
    boxes: Real[np.ndarray, "K 4"]  # x, y, width, height in original pixels; none where the prompt is judged absent


def figure(
    picture: UInt8[np.ndarray, "h w"],
    place: Placed,
    caption: Caption,
    most_side: int | None = None,
    *,
    strength: float = 1.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with the map and the boxes, and the caption below.

    Args:
        picture: the image at original size or smaller.
        place: the map and the boxes.
        caption: what to write.
        most_side: the sides of the figure have at most so many pixels, for which the picture is made smaller; None
            keeps its size.
        strength: a factor of the opacity of colours and lines.

    Returns:
        [H, W, 3] uint8, red, green and blue: as wide as the picture, or wider where the caption needs it.
    """
    picture, strip = _laid_out(picture, caption, most_side)
    height, width = picture.shape
    canvas = np.empty((height + len(strip), strip.shape[1], 3), np.uint8)
    canvas[:height] = _PAPER
    left = (strip.shape[1] - width) // 2
    canvas[:height, left : left + width] = marked(picture, place, caption, strength)
    canvas[height:] = strip
    return canvas


def marked(
    picture: UInt8[np.ndarray, "h w"], place: Placed, caption: Caption, strength: float = 1.0
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, at original size or smaller, with the map and the boxes on it. For `strength` see `figure`."""
    height, width = picture.shape
    geometry = place.geometry
    heatmap = replace(geometry, height=height, width=width).map_to_original(place.square)
    scale = np.tile([width / geometry.width, height / geometry.height], 2)
    tint = tinted(picture, heatmap, caption.lowest, caption.highest, cut=caption.cut, strength=strength)
    return draw_boxes(tint, place.boxes * scale) if len(place.boxes) else tint


def _laid_out(
    picture: UInt8[np.ndarray, "h w"], caption: Caption, most_side: int | None
) -> tuple[UInt8[np.ndarray, "h2 w2"], UInt8[np.ndarray, "strip W 3"]]:
    """The picture, made smaller where it and the caption would exceed `most_side`, and the caption."""
    side = most_side or max(picture.shape)
    while True:
        shown = smaller(picture, side)
        strip = _strip(caption, max(shown.shape[1], _NARROWEST))
        if not most_side or side == 1 or len(shown) + len(strip) <= most_side:
            return shown, strip
        side = max(1, int(side * min(0.99, max(0, most_side - len(strip)) / len(shown))))


def tinted(
    picture: UInt8[np.ndarray, "h w"],
    heatmap: Float[np.ndarray, "h w"],
    lowest: float,
    highest: float,
    *,
    cut: float | None = None,
    strength: float = 1.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """The grey picture with colours where the map exceeds `cut`, and a line around these regions.

    The colours run from `lowest` to `highest`; `cut` is `lowest` where it is not given. `strength` multiplies the
    opacity of colours and lines.
    """
    if picture.shape != heatmap.shape:
        raise ValueError(f"image {picture.shape} and heat map {heatmap.shape} differ in size")
    drawn = np.repeat(picture[:, :, None], 3, axis=2)
    cut = lowest if cut is None else cut
    seen = heatmap > cut
    if strength <= 0 or not seen.any():
        return drawn
    scale = max(highest - lowest, 1e-30)
    for start in range(0, len(drawn), _ROWS):
        band = slice(start, start + _ROWS)
        part, inside = drawn[band], seen[band]
        share = np.clip((heatmap[band][inside] - lowest) / scale, 0, 1)
        tint = colours()[(255 * share).astype(np.uint8)]
        opacity = (strength * (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * share))[:, None]
        part[inside] = np.rint((1 - opacity) * part[inside] + opacity * tint).astype(np.uint8)
    outlines, _ = cv2.findContours(seen.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(max(picture.shape) / 700))
    bare = drawn.copy() if strength < 1 else drawn
    cv2.drawContours(drawn, outlines, -1, colours()[_OUTLINE].tolist(), line, cv2.LINE_AA)
    return drawn if strength >= 1 else cv2.addWeighted(drawn, strength, bare, 1 - strength, 0)


def draw_boxes(picture: UInt8[np.ndarray, "h w 3"], boxes: Float[np.ndarray, "K 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of a picture with boxes (x, y, width, height in pixels) on it."""
    drawn = picture.copy()
    line = max(2, round(max(picture.shape[:2]) / 400))
    for colour, thickness in (((0, 0, 0), line + 2), (BOX, line)):
        for x, y, width, height in boxes:
            corners = (round(x), round(y)), (max(round(x), round(x + width) - 1), max(round(y), round(y + height) - 1))
            cv2.rectangle(drawn, *corners, color=colour, thickness=thickness)
    return drawn


def smaller(picture: UInt8[np.ndarray, "H W"], most_side: int) -> UInt8[np.ndarray, "h w"]:
    """The picture with sides of at most `most_side` pixels, by area interpolation; one that is small stays as it is."""
    longest = max(picture.shape)
    if longest <= most_side:
        return picture
    height, width = (max(1, round(side * most_side / longest)) for side in picture.shape)
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def short(value: float) -> str:
    """A number in two or three digits, as captions show it."""
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}"


def hex_colours(count: int) -> list[str]:
    """Colours of the bar at `count` equal steps, from its lowest to its highest value."""
    return [hexadecimal(colour) for colour in colours()[np.linspace(0, 255, count).astype(int)].tolist()]


def hexadecimal(colour: Sequence[int]) -> str:
    """A colour as style sheets write it.

    >>> hexadecimal((86, 180, 233))
    '#56b4e9'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)


@functools.cache
def colours() -> UInt8[np.ndarray, "256 3"]:
    """The colours of the bar from its lowest to its highest value, red, green and blue."""
    steps = np.linspace(255 * _COLOURS[0], 255 * _COLOURS[1], 256).round().astype(np.uint8)[None]
    return np.asarray(cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO)[0, :, ::-1])


def _strip(caption: Caption, width: int) -> UInt8[np.ndarray, "h {width} 3"]:
    """The caption: the prompt over the facts at the left, the colour bar at the right, warnings below."""
    size = max(13, round(width / 40))
    large, small = _font(round(1.2 * size)), _font(size)
    margin, gap = round(1.1 * size), round(0.45 * size)
    bar = round(0.3 * width)
    room = width - bar - 3 * margin
    rows = [(line, large, _INK) for line in _wrapped(caption.title, large, room, most=3)]
    rows += [(line, small, _FAINT) for line in _wrapped("  \u00b7  ".join(caption.facts), small, room, most=3)]
    below = [line for warning in caption.warnings for line in _wrapped(warning, small, width - 2 * margin, most=2)]
    rows_height = sum(int(1.25 * font.size) for _, font, _ in rows)
    bar_height = round(1.1 * size) + gap + round(1.25 * size)
    height = 2 * margin + max(rows_height, bar_height) + (gap + len(below) * round(1.25 * size) if below else 0)
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    top = margin
    for line, font, colour in rows:
        draw.text((margin, top), line, colour, font)
        top += int(1.25 * font.size)
    left = width - margin - bar
    scale = np.linspace(0, 255, bar).astype(np.uint8)
    ramp = np.broadcast_to(colours()[scale], (round(1.1 * size), bar, 3))
    image.paste(Image.fromarray(np.ascontiguousarray(ramp)), (left, margin))
    under = margin + round(1.1 * size) + gap
    beginning = f"threshold {short(caption.lowest)}" if caption.cut is None else short(caption.lowest)
    draw.text((left, under), beginning, _FAINT, small)
    draw.text((left + bar, under), short(caption.highest), _FAINT, small, anchor="ra")
    top = margin + max(rows_height, bar_height) + gap
    for line in below:
        draw.text((margin, top), line, _WARNING, small)
        top += round(1.25 * size)
    return np.asarray(image)


@functools.lru_cache(maxsize=32)  # a font that is made for every figure takes memory that does not come back
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(
        ImageFont.FreeTypeFont, ImageFont.load_default(size)
    )  # with a size it is none of Pillow's small bitmaps


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: int, most: int) -> list[str]:
    """The text in lines that fit into so many pixels; what does not fit into `most` lines ends in an ellipsis."""
    if len(text) > _LETTERS * most:  # else the time would grow with the square of a long word
        text = f"{text[: _LETTERS * most]}\u2026"
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if not lines[-1] or font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:most]
    for k, line in enumerate(kept):
        whole = font.getlength(line) <= room and (k + 1 < most or len(lines) <= most)
        while not whole and line and font.getlength(f"{line}\u2026") > room:
            line = line[:-1]
        kept[k] = line if whole else f"{line}\u2026"
    return [line.strip() for line in kept if line.strip()]
