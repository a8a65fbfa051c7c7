"""Export a model folder in one of the formats of the table."""

import importlib
from collections.abc import Sequence

import afloc_jax
from afloc_jax import buckets
from afloc_jax.errors import UsageError, UserError
from afloc_jax.export.check import write_check
from afloc_jax.export.formats import FORMATS, Format
from afloc_jax.export.readme import write_readme
from afloc_jax.export.small import read_words, small
from afloc_jax.export.source import read_source
from afloc_jax.extras import install
from afloc_jax.files import AnyPath, Path, absolute, bucket_path, replacing_folder, write_json
from afloc_jax.weights.folder import weights_hash

MARKER = "export.json"


def export_model(model_folder: AnyPath, destination: AnyPath, format: str, words: Sequence[AnyPath] = ()) -> Path:
    """Writes an export of a model folder.

    Args:
        model_folder: a model folder, from training or an import.
        destination: the folder to write. An older export there is replaced; other files are never overwritten.
        format: one of FORMATS.
        words: text files; "small" keeps of the vocabulary what their words need. Without one it keeps all.

    Returns:
        The destination.

    Raises:
        UsageError: the format is unknown, the destination holds other files or lies in the model folder, or the format
            cannot express the model.
        UserError: the model folder is unusable, or a package is missing; the message says how to install it.
    """
    model_folder, destination = bucket_path(model_folder), bucket_path(destination)
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is not known: choose one of {', '.join(FORMATS)}")
    chosen = FORMATS[format]
    if words and format != "small":
        raise UsageError(f"--words cuts the vocabulary of --format small; {format} keeps it: leave --words out")
    kept = read_words(words)
    _check_destination(model_folder, destination)
    _check_packages(format, chosen)
    exporter = importlib.import_module(f"{__package__}.{chosen.module}")
    source = read_source(model_folder)
    if format == "small":
        source = small(source, kept)
    with replacing_folder(destination, marker=MARKER) as temporary:
        exporter.write(source, temporary)
        write_check(source, temporary, chosen.check)
        write_readme(source, temporary, format, chosen)
        marker = {
            "format": format,
            "model": source.config.name,
            "weights_sha256": weights_hash(model_folder),
            "written_by": f"afloc_jax {afloc_jax.__version__}",
        }
        write_json(temporary / MARKER, marker)
    return destination


def _check_destination(model_folder: Path, destination: Path) -> None:
    if buckets.is_bucket(destination):
        buckets.check(str(destination))
    model, target = absolute(model_folder), absolute(destination)
    if target == model or model in target.parents:
        raise UsageError(f"{destination}: lies in the model folder {model_folder}; export to a folder beside it")
    if target in model.parents:
        raise UsageError(f"{destination}: holds the model folder {model_folder}; export to a folder of its own")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{destination}: a file is in the way; give the name of a folder")
    known = (MARKER, buckets.WRITING)  # an export, or one whose process was killed
    if target.is_dir() and any(target.iterdir()) and not any((target / name).is_file() for name in known):
        raise UsageError(f"{destination}: holds files that are no export; give a new or empty folder")


def _check_packages(name: str, format: Format) -> None:
    for package in format.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing = error.name or package
            raise UserError(f"export format {name} needs the package {missing}; run: {install('export')}") from None
