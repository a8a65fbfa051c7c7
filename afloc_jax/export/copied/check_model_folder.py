"""Prints the largest difference between this folder's outputs here and where it was written, by maximum."""

import json
from pathlib import Path

import numpy as np

import afloc_jax

check = Path(__file__).resolve().parent
ours, images = np.load(check / "outputs.npz"), np.load(check / "inputs.npz")["image"]
model, prompts = afloc_jax.load(check.parent), json.loads((check / "prompts.json").read_text())
found = {**vars(model.embed_squares(images)), **vars(model.embed_texts(prompts))}
found |= {"heatmap": model.heatmaps_of_squares(images, prompts)}
ours = {name: ours[name] for name in ours if name in found}
