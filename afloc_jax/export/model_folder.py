"""Export as safetensors: a copy of the model folder, with a check."""

import shutil

from afloc_jax.export.source import Source
from afloc_jax.files import Path, write_json
from afloc_jax.weights.calibration import CALIBRATION
from afloc_jax.weights.folder import CONFIG, PREPROCESSOR, UNSEEN, WEIGHTS, preprocessor
from data_pipelines.tokens import save_tokenizer


def write(source: Source, folder: Path) -> None:
    """Writes the export into an empty folder."""
    for name in (CONFIG, WEIGHTS, UNSEEN, CALIBRATION):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    # Written anew: folders of earlier versions name no processor there, without which transformers refuses them.
    write_json(folder / PREPROCESSOR, preprocessor(source.config.preprocessing))
    save_tokenizer(source.tokenizer, folder)
