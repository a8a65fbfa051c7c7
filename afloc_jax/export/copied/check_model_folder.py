"""Prints the largest difference between this folder's outputs here and where it was written, by maximum."""

import json
import sys
from pathlib import Path

import numpy as np

import afloc_jax

check = Path(__file__).resolve().parent
ours, images = np.load(check / "outputs.npz"), np.load(check / "inputs.npz")["image"]
model, prompts = afloc_jax.load(check.parent), json.loads((check / "prompts.json").read_text())
found = {**vars(model.embed_squares(images)), **vars(model.embed_texts(prompts))}
found |= {"heatmap": model.heatmaps_of_squares(images, prompts)}
difference = {n: np.abs(found[n] - ours[n]).max() / np.abs(ours[n]).max() for n in ours.files if n in found}
print("\n".join(f"{name:10s} {value:.1e}" for name, value in difference.items()))
largest = max(difference.values(), key=lambda value: (np.isnan(value), value))
print(f"largest difference {largest:.1e}")
sys.exit(0 if largest <= 1e-4 else 1)
