"""The three graphs of an ONNX export together, in ONNX Runtime. Needs: pip install onnxruntime numpy

import afloc_inputs, afloc_onnx
inputs = afloc_inputs.read("the/folder/of/this/file", ["chest.png"], ["small left pleural effusion"])
levels = afloc_onnx.load("the/folder/of/this/file")(**inputs)
levels["heatmap"]  # [1, 224, 224], of the zero-padded square
"""

from pathlib import Path

import numpy as np
import onnxruntime


class Graphs:
    """The image tower, the text tower and the heat map. Each can also be run alone with its named inputs."""

    def __init__(self, folder: Path):
        self.image, self.text, self.heatmap = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=onnxruntime.get_available_providers())
            for name in ("image", "text", "heatmap")
        )

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """All levels of images and texts, and the heat map of each pair."""
        found = {**run(self.image, inputs), **run(self.text, inputs)}
        return found | run(self.heatmap, found)


def load(folder: str | Path) -> Graphs:
    """The exported model of a folder."""
    return Graphs(Path(folder))


def run(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The named outputs of one graph, which reads the inputs that it needs."""
    wanted = {each.name: inputs[each.name] for each in session.get_inputs()}
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, wanted), strict=True))
