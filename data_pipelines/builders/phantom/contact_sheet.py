"""A labelled picture of many phantoms, with the outlines of their masks.

python -m data_pipelines.builders.phantom.contact_sheet --out sheet.png [--split test] [--count 16] [--plain] [--varied]
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from data_pipelines.builders.phantom.findings import VARIED_KINDS
from data_pipelines.builders.phantom.generate import SPLITS, Phantom, generate

_ZOOM = 1.5
_LINE = 13  # pixels of height per line of caption
_LINES = 3


def colour(label: str) -> tuple[int, int, int]:
    """One hue per category (blue, green, red)."""
    hue = np.array([[[170 * list(VARIED_KINDS).index(label) // len(VARIED_KINDS), 170, 255]]], np.uint8)
    blue, green, red = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


def tile(phantom: Phantom, name: str, outlines: bool = True) -> np.ndarray:
    """A tile [H, W, 3] uint8: the enlarged image with outlines of masks, and below it the prompts in their colours."""
    image = cv2.resize(phantom.image, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_CUBIC)
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if outlines:
        for finding in phantom.findings:
            mask = cv2.resize(finding.mask.astype(np.uint8), image.shape[::-1], interpolation=cv2.INTER_NEAREST)
            contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, contours, -1, colour(finding.label), 1)
    caption = np.full((_LINE * _LINES + 6, picture.shape[1], 3), 24, np.uint8)
    lines = [(finding.prompt, colour(finding.label)) for finding in phantom.findings] or [("normal", (200, 200, 200))]
    lines[0] = (f"{name} {lines[0][0]}", lines[0][1])
    for row, (text, shade) in enumerate(lines):
        cv2.putText(caption, text, (4, _LINE * (row + 1)), cv2.FONT_HERSHEY_SIMPLEX, 0.36, shade, 1, cv2.LINE_AA)
    return np.concatenate([picture, caption])


def sheet(
    seed: int, split: str, start: int, count: int, columns: int, outlines: bool = True, varied: bool = False
) -> np.ndarray:
    """Tiles of phantoms start..start+count-1, row by row, [H, W, 3] uint8; the last row is filled with black."""
    tiles = [tile(generate(seed, split, i, varied=varied), str(i), outlines) for i in range(start, start + count)]
    tiles += [np.zeros_like(tiles[0])] * (-count % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="contact_sheet", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="image file to write, e.g. sheet.png")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="first phantom")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="no outlines")
    parser.add_argument("--varied", action="store_true", help="varied phantoms")
    options = parser.parse_args(arguments)
    if min(options.count, options.columns) < 1 or min(options.seed, options.start) < 0:
        parser.error("count and columns must be at least 1, seed and start not negative")
    picture = sheet(
        options.seed, options.split, options.start, options.count, options.columns, not options.plain, options.varied
    )
    try:
        written = cv2.imwrite(str(options.out), picture)
    except cv2.error:  # an ending that OpenCV does not know
        written = False
    if not written:
        print(f"cannot write {options.out}: use an existing folder and a name ending in .png", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
