"""Export as safetensors: a copy of the model folder, with a check."""

import shutil

from afloc_jax.export.source import Source
from afloc_jax.files import Path
from afloc_jax.weights.calibration import CALIBRATION
from afloc_jax.weights.folder import CONFIG, PREPROCESSOR, UNSEEN, WEIGHTS
from data_pipelines.tokens import save_tokenizer


def write(source: Source, folder: Path) -> None:
    """Writes the export into an empty folder."""
    for name in (CONFIG, WEIGHTS, PREPROCESSOR, UNSEEN, CALIBRATION):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    save_tokenizer(source.tokenizer, folder)
