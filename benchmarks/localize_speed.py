r"""The speed of localising prompts in films, compared with the torch-module export, in one process.

    python -m benchmarks.localize_speed [--films 32] [--rounds 5] [--model FOLDER]
    python -m benchmarks.localize_speed --backbone dinov2_base --films 2 --rounds 9 \
        --sides ours "transformers, known prompts"

Without --model a model of full size (ResNet-50, BERT-base) gets random weights; with --backbone a vision transformer
takes the place of ResNet-50 (configs/vit.py). A DINOv2 has the further side `transformers`: the export, whose image
tower is `Dinov2Model` of Hugging Face Transformers with the same weights, and which computes no shallow map; also with
known prompts, as ours.

Films are JPEG files of 2,500 x 3,000 pixels, and there are five prompts. The sides alternate, so that other work on the
machine affects all of them. Each is timed from the files to the heat maps of the padded squares, which is all that the
export gives. It reads films with its own reader, encodes each film and each prompt once, and makes the map of every
pair. Ours is also timed with the boxes and the maps at original size, and without knowing the prompts from the round
before. After one round that is not timed the program prints medians and ranges, the ratios of the last side's time
within each round, the largest difference of its maps from those of the first, and one JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afloc_jax.export.copied import afloc_inputs, afloc_torch
from afloc_jax.export.write import export_model
from afloc_jax.inference.model import Model, load
from benchmarks.full_size import PROMPTS, write_films, write_model


def ours(model: Model, films: list[Path]) -> np.ndarray:
    """The maps [films, prompts, S, S] of the squares. What is kept of the films of the round before is let go first."""
    model.forget_images()
    return np.stack([[found.square for found in row] for row in model.localize_each(films, PROMPTS)])


def ours_at_original_size(model: Model, films: list[Path]) -> None:
    model.forget_images()
    for row in model.localize_each(films, PROMPTS):
        for found in row:
            assert found.heatmap.size and found.boxes.shape[1] == 4


class Dinov2(torch.nn.Module):
    """`Dinov2Model` of Transformers in the place of the export's image tower, with its weights."""

    def __init__(self, tower: torch.nn.Module, settings: Mapping[str, Any]):
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        structure = settings["structure"]
        self.cells = settings["input_size"] // structure["patch"]
        config = Dinov2Config(
            hidden_size=structure["width"],
            num_hidden_layers=structure["blocks"],
            num_attention_heads=structure["heads"],
            mlp_ratio=structure["mlp_width"] // structure["width"],
            hidden_act=structure["activation"],
            layer_norm_eps=structure["epsilon"],
            patch_size=structure["patch"],
            image_size=structure["position_grid"] * structure["patch"],
            use_mask_token=False,
        )
        self.model = Dinov2Model.from_pretrained(None, config=config, state_dict=tower.state_dict())  # renames them

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = self.model(x).last_hidden_state
        deep = tokens[:, 1:].transpose(1, 2).unflatten(2, (self.cells, self.cells))
        return deep, deep, tokens[:, 0]


def with_transformers(export: Path) -> afloc_torch.AFLoc:
    """The export with the image tower of Transformers, and without the projection of the shallow map."""
    network = afloc_torch.load(export)
    encoder = network.img_encoder
    encoder.register_module("model", Dinov2(encoder.model, network.config["image"]).eval())
    encoder.register_module("local2_embedder", torch.nn.Identity())
    return network


def queries(network: afloc_torch.AFLoc, folder: Path) -> torch.Tensor:
    """What the export asks of images for the prompts."""
    with torch.inference_mode():
        tokens = afloc_inputs.tokenize(folder, PROMPTS, network.config["max_tokens"])
        tokens.pop("word_count")
        return network.encode_text(**{name: torch.from_numpy(array) for name, array in tokens.items()})[-1]


def of_torch(
    network: afloc_torch.AFLoc, folder: Path, films: list[Path], known: torch.Tensor | None = None
) -> np.ndarray:
    """`ours` by the export; `known` are its queries of the prompts, which it computes otherwise."""
    with torch.inference_mode():
        squares = np.stack([afloc_inputs.read_image(film, network.config["image_size"]) for film in films])
        asked = queries(network, folder) if known is None else known
        deep = network.encode_image(torch.from_numpy(squares))[1]
        return np.stack([network.heat_map(deep, one.expand(len(deep), -1)).numpy() for one in asked], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder (default: full size, random weights)")
    parser.add_argument("--films", type=int, default=32, help="number of films (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one to warm up (default: %(default)s)")
    parser.add_argument("--backbone", default="", help="vision transformer with random weights, such as dinov2_base")
    parser.add_argument("--sides", nargs="+", default=[], metavar="SIDE", help="these alone, in order (default: all)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = given.model or write_model(Path(directory) / "model", given.backbone)
        export = export_model(folder, Path(directory) / "torch", "torch-module")
        films = write_films(Path(directory) / "films", given.films)
        model, network = load(folder), afloc_torch.load(export)
        sides: dict[str, Callable[[], object]] = {
            "ours": lambda: ours(model, films),
            "ours, new prompts": lambda: ours(load(folder), films),
            "ours, original size": lambda: ours_at_original_size(model, films),
            "torch": lambda: of_torch(network, export, films),
        }
        if network.config["image"]["family"] == "dinov2":
            other = with_transformers(export)
            known = queries(other, export)
            sides["transformers"] = lambda: of_torch(other, export, films)
            sides["transformers, known prompts"] = lambda: of_torch(other, export, films, known)
        if not {*given.sides} <= sides.keys():
            parser.error(f"--sides: there are {', '.join(map(repr, sides))}")
        sides = {name: sides[name] for name in given.sides or sides}
        *_, last = sides
        first, *others = [found for work in sides.values() if isinstance(found := work(), np.ndarray)]  # compiles
        expected = others[-1] if others else first
        difference = float(np.abs(first - expected).max() / np.abs(expected).max())
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
        ratios = [other / own for other, own in zip(seconds[last], times, strict=True)]
        result |= {name: statistics.median(times), f"{last} / {name}": statistics.median(ratios)}
        print(
            f"{name:28s} {result[name]:6.2f} s ({min(times):.2f} to {max(times):.2f})   "
            f"{last} / this {result[f'{last} / {name}']:5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(json.dumps({name: round(value, 7) for name, value in result.items()}))


if __name__ == "__main__":
    main()
