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
        runtime: packages for `pip install` with which the scripts of the export run.
        use: what README.md of the export says before the general lines; empty where README.md is the model card.
    """

    about: str
    module: str
    check: str
    packages: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    use: str = ""


_READERS = ("numpy", "pillow", "tokenizers")
_LOCALIZE = """\
    python afloc_localize.py chest.png "small left pleural effusion" --out out

writes the heat map `out/chest.0.heatmap.npy` (float32, height x width of the image) and `out/chest.localize.json` with
the similarity and the boxes (x, y, width, height in original pixels). It runs from any folder. From Python:
`import afloc_localize; afloc_localize.localize("chest.png", ["small left pleural effusion"])`.
"""
_PUBLISHED = """\
`model.ckpt` is a checkpoint for the published PyTorch code: give it to that code's own loader. If there is a folder
`bert`, that code reads it from its working directory. `check/afloc_torch.py` is the same network in plain PyTorch.
"""

FORMATS = {
    "safetensors": Format("the model folder, PyTorch names and layouts", "model_folder", "check_model_folder.py"),
    "small": Format("a model folder in float16, its vocabulary cut to --words", "small", "check_model_folder.py"),
    "afloc-ckpt": Format(
        "a file that the published PyTorch code loads",
        "afloc_ckpt",
        "check_afloc_ckpt.py",
        packages=("torch", "omegaconf"),
        runtime=("torch", "omegaconf", "numpy"),
        use=_PUBLISHED,
    ),
    "torch-module": Format(
        "one Python file of plain torch.nn modules, with weights",
        "torch_module",
        "check_torch_module.py",
        packages=("torch",),
        runtime=("torch", *_READERS),
        use=_LOCALIZE,
    ),
    "onnx": Format(
        "image tower, text tower and heat map, any batch size",
        "onnx_graphs",
        "check_onnx.py",
        packages=("torch", "onnx", "onnxscript"),
        runtime=("onnxruntime", *_READERS),
        use=_LOCALIZE,
    ),
    "stablehlo": Format(
        "the same three for jax.export, on CPU, CUDA and TPU",
        "stablehlo",
        "check_stablehlo.py",
        packages=("flatbuffers",),
        runtime=("jax", "flatbuffers", *_READERS),
        use=_LOCALIZE,
    ),
}
