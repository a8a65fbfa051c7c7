"""The table of export formats. A further format needs a row here and the module that the row names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One export format.

    Attributes:
        about: the description in the help of the command line.
        module: the module of this package whose `write(source, folder)` writes the export into an empty folder. It is
            imported when its format is chosen, because it may need `packages`.
        check: the file of copied/ that becomes check/check.py of the export.
        packages: packages for `pip install` that this export needs and a model in use does not.
    """

    about: str
    module: str
    check: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "safetensors": Format("the model folder, PyTorch names and layouts", "model_folder", "check_model_folder.py"),
    "afloc-ckpt": Format(
        "a file that the published PyTorch code loads", "afloc_ckpt", "check_afloc_ckpt.py", ("torch", "omegaconf")
    ),
    "torch-module": Format(
        "one Python file of plain torch.nn modules, with weights", "torch_module", "check_torch_module.py", ("torch",)
    ),
    "onnx": Format(
        "image tower, text tower and heat map, any batch size",
        "onnx_graphs",
        "check_onnx.py",
        ("torch", "onnx", "onnxscript"),
    ),
    "stablehlo": Format(
        "the same three for jax.export, on CPU, CUDA and TPU", "stablehlo", "check_stablehlo.py", ("flatbuffers",)
    ),
}
