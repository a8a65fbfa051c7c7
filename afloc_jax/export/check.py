"""The check in every export: a few fixed inputs, the outputs of afloc_jax for them, and a script that compares."""

import json

import numpy as np

from afloc_jax.export.source import COPIED, Source, write_arrays
from afloc_jax.files import Path
from data_pipelines.tokens import tokenize

# The end of every check.py, behind the file of copied/ that gives `found` and `ours`: arrays by their names.
REPORT = """
difference = {name: np.abs(found[name] - ours[name]).max() / np.abs(ours[name]).max() for name in ours}
print("\\n".join(f"{name:10s} {value:.1e}" for name, value in difference.items()))
largest = max(difference.values(), key=lambda value: (np.isnan(value), value))
print(f"largest difference {largest:.1e}")
raise SystemExit(0 if largest <= 1e-4 else 1)
"""
PROMPTS = ("small left pleural effusion", "findings suggesting pneumonia. no pneumothorax", "the heart is enlarged")


def write_check(source: Source, folder: Path, script: str) -> None:
    """Writes check/ into an export: inputs.npz, outputs.npz (ours), prompts.json, and `script` as check.py."""
    target = folder / "check"
    target.mkdir(exist_ok=True)
    inputs = check_inputs(source)
    write_arrays(target / "inputs.npz", inputs)
    write_arrays(target / "outputs.npz", our_outputs(source, inputs["image"], PROMPTS))
    (target / "prompts.json").write_text(json.dumps(PROMPTS) + "\n")
    (target / "check.py").write_text((COPIED / script).read_text() + REPORT)


def check_inputs(source: Source) -> dict[str, np.ndarray]:
    """Three uint8 squares of smooth shapes and noise, the last one padded at its sides, and three tokenized prompts."""
    side, random = source.image_size, np.random.default_rng(0)
    row, column = np.mgrid[:side, :side] / side
    squares = []
    for _ in PROMPTS:
        square = np.full((side, side), 40.0)
        for _ in range(6):
            y, x, size, height = random.uniform((0.1, 0.1, 0.03, -60), (0.9, 0.9, 0.3, 150))
            square += height * np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * size**2))
        squares.append(square + random.normal(0, 8, square.shape))
    squares[-1][:, : side // 8] = squares[-1][:, -side // 8 :] = 0
    image = np.clip(np.rint(squares), 0, 255).astype(np.uint8)
    read = source.model.read_prompts(PROMPTS)
    tokens = tokenize(source.tokenizer, read, source.max_tokens)
    return {"image": image, **{name: np.asarray(array) for name, array in tokens.items()}}


def our_outputs(source: Source, squares: np.ndarray, prompts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The outputs of afloc_jax for squares [B, S, S] and B prompts: all levels of both sides, and the heat maps."""
    image, text = source.model.embed_squares(squares), source.model.embed_texts(prompts)
    outputs = {
        "shallow": image.shallow,
        "deep": image.deep,
        "whole": image.whole,
        "words": text.words,
        "sentences": text.sentences,
        "report": text.report,
        "asked": source.config.localization.query(text),
        "heatmap": source.model.heatmaps_of_squares(squares, prompts),
    }
    return {name: np.asarray(value) for name, value in outputs.items()}
