"""Heat maps and boxes of an exported AFLoc model, at the original size of an image. From any folder:

    python afloc_localize.py chest.png "small left pleural effusion" "pneumothorax" --out out

writes, for prompt k from 0, out/chest.k.heatmap.npy (float32, height x width) and one out/chest.localize.json: the
similarity of each prompt and its boxes as x, y, width, height in original pixels. Needs: pip install numpy pillow
tokenizers, and the runtime of the export (torch, onnxruntime, or jax and flatbuffers).
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
THRESHOLD = 0.3


def load(folder: Path = FOLDER) -> Callable[..., dict[str, np.ndarray]]:
    """The exported model of a folder: named inputs to named outputs, whichever the format."""
    if (folder / "afloc_torch.py").exists():
        import afloc_torch
        import torch

        model = afloc_torch.load(folder)

        def call(**inputs: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                levels = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            return {name: value.numpy() for name, value in levels._asdict().items()}

        return call
    if (folder / "afloc_onnx.py").exists():
        import afloc_onnx

        return afloc_onnx.load(folder)
    import afloc_stablehlo

    return afloc_stablehlo.load(folder)


def localize(
    image: str | Path, prompts: Sequence[str], threshold: float = THRESHOLD, folder: Path = FOLDER
) -> list[dict]:
    """For each prompt its `heatmap` [height, width] float32, `similarity` and `boxes` [K, 4] in the image."""
    import afloc_inputs

    height, width = afloc_inputs.read_pixels(image).shape
    inputs = afloc_inputs.read(folder, [image] * len(prompts), prompts)
    levels = {name: np.asarray(value) for name, value in load(folder)(**inputs).items()}
    found = []
    for square, whole, report in zip(levels["heatmap"], levels["whole"], levels["report"], strict=True):
        heatmap = to_original(square, height, width)
        cosine = whole @ report / (np.linalg.norm(whole) * np.linalg.norm(report))
        found.append({"heatmap": heatmap, "similarity": float(cosine), "boxes": boxes(heatmap, threshold)})
    return found


def to_original(square: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map of the padded square as [height, width] float32, without the padding; bilinear, half-pixel centres."""
    import afloc_inputs

    top, left, rows, columns = afloc_inputs.place(height, width, len(square))
    inner = square[top : top + rows, left : left + columns].astype(np.float64)
    return (linear_matrix(rows, height) @ inner @ linear_matrix(columns, width).T).astype(np.float32)


def linear_matrix(size: int, target: int) -> np.ndarray:
    """Linear interpolation of one axis as a matrix [target, size]; beyond the outer centres values are constant."""
    centres = np.clip((np.arange(target) + 0.5) * (size / target) - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(size)), 0)


def boxes(heatmap: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Boxes [K, 4] around connected regions where the map, scaled to [-1, 1], exceeds `threshold`; the largest first.

    Pixels that share a side are connected.
    """
    lowest, highest = float(heatmap.min()), float(heatmap.max())
    mask = heatmap > lowest + (threshold + 1) / 2 * (highest - lowest)
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)  # a run of pixels in each
    ends = np.nonzero(steps == -1)[1]
    parent = np.arange(len(rows))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above = 0
    for run in range(len(rows)):
        while rows[above] < rows[run] - 1 or (rows[above] == rows[run] - 1 and ends[above] <= starts[run]):
            above += 1
        other = above
        while other < run and rows[other] == rows[run] - 1 and starts[other] < ends[run]:
            first, second = sorted((root(run), root(other)))
            parent[second] = first
            other += 1
    roots = np.array([root(run) for run in range(len(rows))], int)
    found = []
    for first in np.unique(roots):
        part = roots == first
        x, y = starts[part].min(), rows[part].min()
        box = (x, y, ends[part].max() - x, rows[part].max() + 1 - y)
        found.append((-(ends[part] - starts[part]).sum(), box))
    ordered = sorted(found, key=lambda sized: sized[0])
    return np.array([box for _, box in ordered], int).reshape(-1, 4)


def main() -> None:
    """Writes the heat maps and boxes of prompts in an image."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("image", type=Path, help="PNG, JPEG, TIFF or BMP")
    parser.add_argument("prompts", nargs="+", metavar="prompt")
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write (default: the current one)")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="of boxes, on the map scaled to [-1, 1]")
    given = parser.parse_args()
    try:
        found = localize(given.image, given.prompts, given.threshold)
    except ImportError as error:
        sys.exit(f"{parser.prog}: needs the package {error.name}; run: pip install {error.name}")
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {given.image}: {' '.join(str(error).split())}")
    given.out.mkdir(parents=True, exist_ok=True)
    told = []
    for k, (prompt, result) in enumerate(zip(given.prompts, found, strict=True)):
        target = given.out / f"{given.image.stem}.{k}.heatmap.npy"
        np.save(target, result["heatmap"])
        similarity, places = result["similarity"], result["boxes"].tolist()
        told.append({"prompt": prompt, "similarity": similarity, "boxes": places, "heatmap": target.name})
        print(f"{prompt}: similarity {similarity:.3f}, boxes {places or 'none'}, map in {target}")
    about = {"image": str(given.image), "threshold": given.threshold, "prompts": told}
    (given.out / f"{given.image.stem}.localize.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
