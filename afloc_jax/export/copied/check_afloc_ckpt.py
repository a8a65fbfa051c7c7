"""Prints the largest difference between model.ckpt, loaded as by the published code into plain PyTorch, and afloc_jax.

Differences are relative to the largest value of each output. Needs torch, omegaconf, numpy.
"""

import json
from pathlib import Path

import afloc_torch
import numpy as np
import torch

check = Path(__file__).resolve().parent
inputs, ours = np.load(check / "inputs.npz"), np.load(check / "outputs.npz")
checkpoint = torch.load(check.parent / "model.ckpt", map_location="cpu", weights_only=False)
network = afloc_torch.AFLoc(json.loads((check / "config.json").read_text()))
network.load_state_dict({name.split("afloc.")[-1]: value for name, value in checkpoint["state_dict"].items()})
with torch.inference_mode():
    found = network.eval()(**{name: torch.from_numpy(array) for name, array in inputs.items()})
found = {name: value.numpy() for name, value in found._asdict().items()}
