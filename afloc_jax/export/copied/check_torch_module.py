"""Prints the largest difference between this export and afloc_jax, relative to each maximum. Needs torch, numpy."""

import sys
from pathlib import Path

import numpy as np
import torch

check = Path(__file__).resolve().parent
sys.path.insert(0, str(check.parent))
import afloc_torch  # noqa: E402

inputs, ours = np.load(check / "inputs.npz"), np.load(check / "outputs.npz")
with torch.inference_mode():
    found = afloc_torch.load(check.parent)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
found = {name: value.numpy() for name, value in found._asdict().items()}
