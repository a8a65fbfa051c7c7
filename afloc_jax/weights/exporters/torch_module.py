"""Export as plain PyTorch: the network in one file (copied/afloc_torch.py), its weights, and a reader of inputs."""

from pathlib import Path
from typing import Any

from afloc_jax.weights.exporters.check import write_check
from afloc_jax.weights.exporters.source import Source, copy_file, describe, require, write_inputs_reader

INSTALL = "torch"


def write(source: Source, folder: Path) -> None:
    """Write the export into an empty folder. Raises UserError when PyTorch is not installed."""
    torch = require("torch", INSTALL, "a torch-module export")
    write_inputs_reader(source, folder)
    copy_file("afloc_torch.py", folder)
    torch.save(tensors(source), folder / "weights.pt")
    write_check(source, folder, "check_torch_module.py")


def tensors(source: Source) -> dict[str, Any]:
    """The state dict as PyTorch tensors."""
    torch = require("torch", INSTALL, "this export")
    return {name: torch.from_numpy(array) for name, array in source.state_dict().items()}


def torch_network(source: Source) -> Any:
    """The torch module with the model's weights, in evaluation mode."""
    torch = require("torch", INSTALL, "this export")
    from afloc_jax.weights.exporters.copied import afloc_torch

    with torch.device("meta"):
        network = afloc_torch.AFLoc(describe(source))
    network.load_state_dict(tensors(source), strict=True, assign=True)
    return network.eval()
