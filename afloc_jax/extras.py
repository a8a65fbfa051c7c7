"""Packages that only some commands need, by the extra of this package that installs them.

The same packages with their versions are in requirements-<extra>.txt.
"""

import importlib.metadata
from collections.abc import Sequence

EXTRAS = {
    "beam": ("apache-beam",),
    "completion": ("shtab",),
    "cuda": ("jax-cuda13-plugin",),
    "dicom": ("python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "highdicom"),
    "export": ("torch", "onnx", "onnxscript", "onnxruntime", "omegaconf", "flatbuffers"),
    "gcs": ("gcsfs",),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
    "serve": ("starlette", "uvicorn"),
    "slurm": ("submitit",),
    "tpu": ("libtpu",),
    "wandb": ("wandb",),
}


def install(extra: str) -> str:
    """The command that installs an extra.

    >>> install("serve")
    'pip install "afloc-jax[serve]"'
    """
    if extra not in EXTRAS:
        raise KeyError(extra)
    return f'pip install "afloc-jax[{extra}]"'


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(extra: str) -> Sequence[str]:
    """The packages of an extra that are not installed."""
    return [package for package in EXTRAS[extra] if version(package) is None]
