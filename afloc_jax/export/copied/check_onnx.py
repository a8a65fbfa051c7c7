"""Prints the largest difference between this export and afloc_jax, relative to each maximum. Needs onnxruntime."""

import sys
from pathlib import Path

import numpy as np

check = Path(__file__).resolve().parent
sys.path.insert(0, str(check.parent))
import afloc_onnx  # noqa: E402

ours = np.load(check / "outputs.npz")
found = afloc_onnx.load(check.parent)(**np.load(check / "inputs.npz"))
