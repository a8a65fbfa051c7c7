"""Agreement of exports in PyTorch, ONNX Runtime and StableHLO with our outputs, on real images.

    python -m benchmarks.export_agreement runs/demo/model --images FOLDER [--count 20]

Every image has a prompt of its own. For each format the program prints the largest difference of each output, relative
to the output's largest value, and one JSON line. The exit status is 1 if any difference is above 1e-4.
"""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from afloc_jax.export.check import our_outputs
from afloc_jax.export.copied import afloc_torch
from afloc_jax.export.source import read_source
from afloc_jax.export.write import export_model
from afloc_jax.inference.pixels import to_square
from data_pipelines.images import ImageError
from data_pipelines.tokens import tokenize

TOLERANCE = 1e-4
PROMPTS = [
    *(f"{size} {side} pleural effusion" for size in ("small", "large") for side in ("left", "right")),
    *(f"{side} {zone} opacity" for side in ("left", "right") for zone in ("apical", "basal", "upper lobe")),
    "findings suggesting pneumonia",
    "no pneumothorax. the heart is enlarged",
    "nodule of 1.5 cm in the right lung",
    "no pleural effusion",
    "the lungs are clear",
    "left pneumothorax",
    "cardiomegaly",
    "consolidation of the lingula. no edema. no effusion",
    "edema",
    "endotracheal tube in place",
]


def read_images(folder: Path, side: int, count: int) -> np.ndarray:
    """The first `count` readable images of a folder, in the order of their names, as squares [B, side, side] uint8."""
    squares: list[np.ndarray] = []
    for path in sorted(folder.iterdir()):
        if len(squares) < count and path.is_file():
            try:
                squares.append(to_square(path, side)[0])
            except ImageError as error:
                print(f"left out: {error}", file=sys.stderr)
    return np.stack(squares)


def run(format: str, folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The named outputs of an export."""
    if format == "torch-module":
        with torch.inference_mode():
            levels = afloc_torch.load(folder)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: value.numpy() for name, value in levels._asdict().items()}
    module = importlib.import_module(f"afloc_jax.export.copied.afloc_{format}")
    return {name: np.asarray(value) for name, value in module.load(folder)(**inputs).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder of a trained run")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--count", type=int, default=len(PROMPTS), help="most images (default: %(default)s)")
    given = parser.parse_args()
    source = read_source(given.model)
    squares = read_images(given.images, source.image_size, min(given.count, len(PROMPTS)))
    prompts = tuple(PROMPTS[: len(squares)])
    read = source.model.read_prompts(prompts)
    tokens = tokenize(source.tokenizer, read, source.max_tokens)
    inputs = {"image": squares, **{name: np.asarray(array) for name, array in tokens.items()}}
    ours = our_outputs(source, squares, prompts)
    print(f"{len(squares)} images, {len(prompts)} prompts")
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for format in ("torch-module", "onnx", "stablehlo"):
            found = run(format, export_model(given.model, Path(directory) / format, format), inputs)
            result[format] = {n: float(np.abs(found[n] - ours[n]).max() / np.abs(ours[n]).max()) for n in ours}
            parts = "  ".join(f"{name} {value:.1e}" for name, value in result[format].items())
            print(f"{format:13s} largest {max(result[format].values()):.1e}   {parts}")
    print(json.dumps({"images": len(squares), "prompts": len(prompts), "differences": result}))
    sys.exit(0 if all(value <= TOLERANCE for each in result.values() for value in each.values()) else 1)


if __name__ == "__main__":
    main()
