"""Export as ONNX: image tower, text tower and heat map as three graphs with a dynamic batch, through the torch module.

    image.onnx    image [B, S, S] uint8 -> shallow, deep, whole
    text.onnx     token_ids, word_ids, sentence_ids [B, L], sentence_count [B], int32 -> words, sentences, report, asked
    heatmap.onnx  deep [B, H2, W2, D], asked [B, D] -> heatmap [B, S, S]

`asked` is the query of the heat map: the report embedding, or the mean of the sentences, of a prompt. There are three
graphs, because an image is encoded once for many prompts and a prompt once for many images.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence

import onnx.checker
import torch

from afloc_jax.export.check import check_inputs
from afloc_jax.export.source import Source, copy_file, write_inputs_reader
from afloc_jax.export.torch_module import torch_network
from afloc_jax.files import Path

TEXT_INPUTS = ("token_ids", "word_ids", "sentence_ids", "sentence_count")
IMAGE_OUTPUTS = ("shallow", "deep", "whole")
TEXT_OUTPUTS = ("words", "sentences", "report", "asked")


def write(source: Source, folder: Path) -> None:
    """Writes the export into an empty folder."""
    network = torch_network(source)
    write_inputs_reader(source, folder)
    inputs = {name: torch.from_numpy(array) for name, array in check_inputs(source).items()}
    with torch.no_grad():
        levels = network(**inputs)
    parts: tuple[tuple[str, Callable, dict[str, torch.Tensor], Sequence[str]], ...] = (
        ("image", network.encode_image, {"image": inputs["image"]}, IMAGE_OUTPUTS),
        ("text", network.encode_text, {name: inputs[name] for name in TEXT_INPUTS}, TEXT_OUTPUTS),
        ("heatmap", network.heat_map, {"deep": levels.deep, "asked": levels.asked}, ("heatmap",)),
    )
    for name, method, arguments, outputs in parts:
        path = folder / f"{name}.onnx"
        _export(_part(network, method), arguments, outputs, path)
        onnx.checker.check_model(str(path), full_check=True)
    copy_file("afloc_onnx.py", folder)


def _part(network: torch.nn.Module, method: Callable) -> torch.nn.Module:
    """A module whose `forward` is one method of the network, as the exporter needs it."""

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *arguments):
            return method(*arguments)

    return Part().eval()


def _export(part: torch.nn.Module, arguments: dict[str, torch.Tensor], outputs: Sequence[str], path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    # The exporter reports progress on stdout, by warnings and by logging. Its errors are raised in any case.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                part,
                tuple(arguments.values()),
                path,
                input_names=list(arguments),
                output_names=list(outputs),
                dynamic_shapes=(tuple({0: batch} for _ in arguments),),
                external_data=False,
                dynamo=True,
                optimize=True,
            )
        finally:
            logging.disable(previous)
