"""The three functions of a StableHLO export together. Needs jax, numpy and flatbuffers.

import afloc_inputs, afloc_stablehlo
inputs = afloc_inputs.read("the/folder/of/this/file", ["chest.png"], ["small left pleural effusion"])
levels = afloc_stablehlo.load("the/folder/of/this/file")(**inputs)
levels["heatmap"]  # [1, 224, 224], of the zero-padded square
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export


class Functions:
    """The image tower, the text tower and the heat map. `run` calls one of them with its named inputs."""

    def __init__(self, folder: Path):
        self.signatures = json.loads((folder / "manifest.json").read_text())["functions"]
        self.calls, self.weights = {}, {}
        for name, signature in self.signatures.items():
            exported = export.deserialize(bytearray((folder / signature["file"]).read_bytes()))
            self.calls[name] = jax.jit(exported.call)
            if signature["weights"]:
                self.weights[name] = jax.device_put(dict(np.load(folder / signature["weights"])))

    def __call__(self, **inputs: Any) -> dict[str, jax.Array]:
        """All levels of images and texts, and the heat map of each pair."""
        found = self.run("image", inputs) | self.run("text", inputs)
        return found | self.run("heatmap", found)

    def run(self, name: str, inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The named outputs of one function, which reads the inputs that it needs."""
        leading = (self.weights[name],) if name in self.weights else ()
        return self.calls[name](*leading, *(inputs[key] for key in self.signatures[name]["inputs"]))


def load(folder: str | Path) -> Functions:
    """The exported model of a folder, on the default device."""
    return Functions(Path(folder))
