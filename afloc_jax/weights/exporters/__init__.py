"""Exports of a model folder: `export_model` writes one, whole or not at all, with a check that its user can run.

    safetensors    the model folder again
    afloc-ckpt     a checkpoint for the published PyTorch code
    torch-module   plain PyTorch, the network in one file
    onnx           three graphs: image tower, text tower, heat map
    stablehlo      the same three as serialized JAX functions, for CPU, CUDA and TPU

Every export holds export.json (what it is and which weights it came from) and check/: inputs, our outputs, and
check.py, which prints the largest difference between those and what the export gives where it is run.
"""

import importlib
import json
from pathlib import Path

import afloc_jax
from afloc_jax.errors import UsageError
from afloc_jax.weights.exporters.source import read_source
from afloc_jax.weights.folder import replacing_folder, weights_hash

MARKER = "export.json"

# Format -> module, imported when asked for: some need packages that running a model does not.
_MODULES = {
    "safetensors": "model_folder",
    "afloc-ckpt": "afloc_ckpt",
    "torch-module": "torch_module",
    "onnx": "onnx_graphs",
    "stablehlo": "stablehlo",
}
FORMATS = tuple(_MODULES)


def export_model(model_folder: str | Path, destination: str | Path, format: str) -> Path:
    """Export a model folder.

    Args:
        model_folder: what training or an import wrote.
        destination: folder to write; an older export there is replaced, anything else is left alone.
        format: one of FORMATS.

    Returns:
        The destination.

    Raises:
        UsageError: an unknown format, a destination that holds something else or lies in the model folder, or a model
            that the format cannot express.
        UserError: not a usable model folder, or a package is missing; the message says how to install it.
    """
    model_folder, destination = Path(model_folder), Path(destination)
    if format not in _MODULES:
        raise UsageError(f"format {format!r} is not known: choose one of {', '.join(FORMATS)}")
    _check_destination(model_folder, destination)
    writer = importlib.import_module(f"{__name__}.{_MODULES[format]}")
    source = read_source(model_folder)
    with replacing_folder(destination.absolute()) as temporary:
        writer.write(source, temporary)
        marker = {
            "format": format,
            "model": source.config.get("name", "afloc"),
            "weights_sha256": weights_hash(model_folder),
            "written_by": f"afloc_jax {afloc_jax.__version__}",
        }
        (temporary / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
    return destination


def _check_destination(model_folder: Path, destination: Path) -> None:
    model, target = model_folder.resolve(), destination.resolve()
    if target == model or model in target.parents:
        raise UsageError(f"{destination}: lies in the model folder {model_folder}; export to a folder beside it")
    if target in model.parents:
        raise UsageError(f"{destination}: holds the model folder {model_folder}; export to a folder of its own")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{destination}: a file is in the way; give the name of a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise UsageError(f"{destination}: holds files that are no export; give a new or empty folder")
