"""Prints the largest difference between this export and afloc_jax, relative to each maximum. Needs jax, numpy."""

import sys
from pathlib import Path

import numpy as np

check = Path(__file__).resolve().parent
sys.path.insert(0, str(check.parent))
import afloc_stablehlo  # noqa: E402

ours = np.load(check / "outputs.npz")
found = afloc_stablehlo.load(check.parent)(**np.load(check / "inputs.npz"))
difference = {name: np.abs(found[name] - ours[name]).max() / np.abs(ours[name]).max() for name in ours.files}
print("\n".join(f"{name:10s} {value:.1e}" for name, value in difference.items()))
largest = max(difference.values(), key=lambda value: (np.isnan(value), value))
print(f"largest difference {largest:.1e}")
sys.exit(0 if largest <= 1e-4 else 1)
