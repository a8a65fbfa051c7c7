"""The pictures of the documentation, drawn from phantoms (drawings of chests), and from the demo's model for the maps.

    python docs/pictures/draw.py                    # levels.png
    python docs/pictures/draw.py runs/demo/model    # and maps.png

Needs the packages of the site: pip install -r requirements-docs.txt.
"""

import argparse
import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_pipelines.builders.phantom.generate import Phantom, generate  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

SHOWN = generate(0, "test", 0)  # a small left pleural effusion
SENTENCES = ("there is a small left pleural fluid at the base", "the heart is normal in size")
# Name, its side of the image, regions along a side for a picture of 299 pixels, colour (Okabe and Ito's, for all eyes).
LEVELS = (
    ("words", "shallow regions", 38, "#0072B2"),
    ("sentences", "deep regions", 19, "#D55E00"),
    ("report", "whole image", 1, "#009E73"),
)
MAPPED = ((0, 0), (9, 0), (4, 0))  # test phantoms and their findings


def outline(phantom: Phantom, regions: int) -> list[tuple[int, int]]:
    """The (row, column) of the regions that hold at least a fifth of the most finding that a region holds."""
    mask = phantom.findings[0].mask.astype(float)
    edges = np.linspace(0, len(mask), regions + 1).round().astype(int)
    share = np.add.reduceat(np.add.reduceat(mask, edges[:-1], 0), edges[:-1], 1)
    return [(int(row), int(column)) for row, column in np.argwhere(share >= share.max() / 5)]


def save(figure: Figure, path: Path) -> None:
    """Writes a picture of at most 256 colours, a third of the bytes of all of them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_levels(path: Path) -> None:
    """Three copies of one phantom, each with the regions of its level and the text that meets them."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.6), layout="constrained")
    for axis, (text, place, regions, colour) in zip(axes, LEVELS, strict=True):
        size = len(SHOWN.image)
        axis.imshow(SHOWN.image, cmap="gray", extent=(0, size, size, 0))
        for line in np.linspace(0, size, regions + 1)[1:-1]:
            axis.axhline(line, color=colour, linewidth=0.35, alpha=0.7)
            axis.axvline(line, color=colour, linewidth=0.35, alpha=0.7)
        side = size / regions
        for row, column in outline(SHOWN, regions):
            corner = (column * side, row * side)
            axis.add_patch(Rectangle(corner, side, side, facecolor=colour, alpha=0.55 if regions > 1 else 0))
        axis.add_patch(Rectangle((0, 0), size, size, fill=False, edgecolor=colour, linewidth=4))
        axis.set_axis_off()
        axis.set_title(f"{text}  \u2194  {place}", color=colour, fontsize=13, fontweight="bold")
        shown = {
            "words": "each word of\n\u201csmall left pleural fluid \u2026\u201d",
            "sentences": f"\u201c{SENTENCES[0]}\u201d",
            "report": f"\u201c{SENTENCES[0]}.\n{SENTENCES[1]}. \u2026\u201d",
        }[text]
        axis.text(0.5, -0.03, shown, transform=axis.transAxes, ha="center", va="top", fontsize=10)
        count = "one vector" if regions == 1 else f"{regions} x {regions} = {regions**2:,} regions"
        axis.text(0.5, -0.16, count, transform=axis.transAxes, ha="center", va="top", fontsize=10, color=colour)
    save(figure, path)


def draw_maps(model_folder: str, path: Path) -> None:
    """Test phantoms the model has not seen, with the map of a phrase and the outline of what was drawn."""
    import afloc_jax

    model = afloc_jax.load(model_folder)
    figure, axes = plt.subplots(1, len(MAPPED), figsize=(10.5, 4.2), layout="constrained")
    for axis, (number, which) in zip(axes, MAPPED, strict=True):
        phantom = generate(0, "test", number)
        finding = phantom.findings[which]
        result = model.localize([phantom.image], [finding.prompt])[0][0]
        axis.imshow(phantom.image, cmap="gray")
        shown = axis.imshow(
            result.heatmap, cmap="cividis", alpha=np.clip(result.heatmap / result.heatmap.max(), 0, 0.7)
        )
        axis.contour(finding.mask, levels=[0.5], colors="white", linewidths=1.2, linestyles="dotted")
        axis.set_axis_off()
        axis.set_title(f"\u201c{finding.prompt}\u201d", fontsize=10)
        figure.colorbar(shown, ax=axis, orientation="horizontal", shrink=0.8, pad=0.02)
    save(figure, path)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="the demo's model folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(given)
    draw_levels(arguments.out / "levels.png")
    if arguments.model:
        draw_maps(arguments.model, arguments.out / "maps.png")


if __name__ == "__main__":
    main()
