"""Export as plain PyTorch: the network in one file (copied/afloc_torch.py), its weights, and a reader of inputs."""

from pathlib import Path
from typing import Any

from afloc_jax.weights.exporters.check import write_check
from afloc_jax.weights.exporters.source import Source, copy_file, require, write_inputs_reader

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
