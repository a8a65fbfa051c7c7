"""Export as plain PyTorch: the network in one file (copied/afloc_torch.py), its weights, and afloc_inputs.py.

A second file, afloc_transformer.py, has the vision transformers of models whose image tower is one.
"""

import torch

from afloc_jax.export.copied import afloc_torch
from afloc_jax.export.source import Source, copy_file, describe, write_inputs_reader
from afloc_jax.files import Path
from afloc_jax.models.vision_transformer import VisionTransformerStructure


def write(source: Source, folder: Path) -> None:
    """Writes the export into an empty folder."""
    write_inputs_reader(source, folder)
    copy_network(source, folder)
    torch.save(tensors(source), folder / "weights.pt")


def copy_network(source: Source, folder: Path) -> None:
    """Copies the files of the network into an export."""
    copy_file("afloc_torch.py", folder)
    if isinstance(source.settings.image.structure, VisionTransformerStructure):
        copy_file("afloc_transformer.py", folder)


def tensors(source: Source) -> dict[str, torch.Tensor]:
    """The state dict as PyTorch tensors."""
    return {name: torch.from_numpy(array) for name, array in source.state_dict().items()}


def torch_network(source: Source) -> afloc_torch.AFLoc:
    """The torch module with the model's weights, in evaluation mode."""
    with torch.device("meta"):
        network = afloc_torch.AFLoc(describe(source))
    network.load_state_dict(tensors(source), strict=True, assign=True)
    return network.eval()
