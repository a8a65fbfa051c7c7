"""The speed of localising prompts in films, compared with the torch-module export, in one process.

    python -m benchmarks.localize_speed [--films 32] [--rounds 5] [--model FOLDER]

Without --model a model of full size (ResNet-50, BERT-base) gets random weights. Films are JPEG files of 2,500 x 3,000
pixels, and there are five prompts. The sides alternate, so that other work on the machine affects both. Each is timed
from the files to the heat maps of the padded squares, which is all that the export gives. It reads films with its own
reader, encodes each film and each prompt once, and makes the map of every pair. Ours is also timed with the boxes and
the maps at original size, and without knowing the prompts from the round before. The program prints medians and ranges,
ratios within each round, the largest difference of the maps, and one JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from afloc_jax.export.copied import afloc_inputs, afloc_torch
from afloc_jax.export.write import export_model
from afloc_jax.inference.model import Model, load
from benchmarks.full_size import PROMPTS, write_films, write_model


def ours(model: Model, films: list[Path]) -> np.ndarray:
    """The maps [films, prompts, S, S] of the squares."""
    return np.stack([[found.square for found in row] for row in model.localize_each(films, PROMPTS)])


def ours_at_original_size(model: Model, films: list[Path]) -> None:
    for row in model.localize_each(films, PROMPTS):
        for found in row:
            assert found.heatmap.size and found.boxes.shape[1] == 4


def of_torch(network: afloc_torch.AFLoc, folder: Path, films: list[Path]) -> np.ndarray:
    """`ours` by the export."""
    with torch.inference_mode():
        squares = np.stack([afloc_inputs.read_image(film, network.config["image_size"]) for film in films])
        tokens = afloc_inputs.tokenize(folder, PROMPTS, network.config["max_tokens"])
        tokens.pop("word_count")
        asked = network.encode_text(**{name: torch.from_numpy(array) for name, array in tokens.items()})[-1]
        deep = network.encode_image(torch.from_numpy(squares))[1]
        return np.stack([network.heat_map(deep, one.expand(len(deep), -1)).numpy() for one in asked], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder (default: full size, random weights)")
    parser.add_argument("--films", type=int, default=32, help="number of films (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one to warm up (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = given.model or write_model(Path(directory) / "model")
        export = export_model(folder, Path(directory) / "torch", "torch-module")
        films = write_films(Path(directory) / "films", given.films)
        model, network = load(folder), afloc_torch.load(export)
        known, expected = ours(model, films), of_torch(network, export, films)
        difference = float(np.abs(known - expected).max() / np.abs(expected).max())
        sides: dict[str, Callable[[], object]] = {
            "ours": lambda: ours(model, films),
            "ours, new prompts": lambda: ours(load(folder), films),
            "ours, original size": lambda: ours_at_original_size(model, films),
            "torch": lambda: of_torch(network, export, films),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(given.rounds):
            for name, work in sides.items():
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
    cores = len(os.sched_getaffinity(0))
    print(f"{given.films} films, {len(PROMPTS)} prompts, {cores} cores, Python {sys.version.split()[0]}")
    result: dict[str, float] = {"difference": difference}
    for name, times in seconds.items():
        ratios = [torch_time / own for torch_time, own in zip(seconds["torch"], times, strict=True)]
        result |= {name: statistics.median(times), f"torch / {name}": statistics.median(ratios)}
        print(
            f"{name:20s} {result[name]:6.2f} s ({min(times):.2f} to {max(times):.2f})   "
            f"torch / this {result[f'torch / {name}']:5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(json.dumps({name: round(value, 7) for name, value in result.items()}))


if __name__ == "__main__":
    main()
