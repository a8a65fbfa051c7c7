"""A model of full size with random weights, and films, for measurements of speed."""

from pathlib import Path

import cv2

from afloc_jax.inference.towers import initial_variables
from afloc_jax.training import recipes
from afloc_jax.training.config import load_module
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.folder import save_model
from benchmarks.prepare_images import radiograph
from configs.afloc import get_config
from data_pipelines.tokens import learn_tokenizer

PROMPTS = (
    "small left pleural effusion",
    "right upper lobe nodule",
    "findings suggesting pneumonia",
    "cardiomegaly",
    "no pneumothorax. the heart is enlarged",
)


def write_model(folder: Path, backbone: str = "") -> Path:
    """Writes the model of configs/afloc.py (ResNet-50, BERT-base) with random weights, or that of configs/vit.py."""
    config = load_module(recipes.find("vit", "config")).get_config(backbone) if backbone else get_config()
    run = RunConfig.from_config(config)
    save_model(folder, initial_variables(run.model, seed=1), run, learn_tokenizer(PROMPTS), {})
    return folder


def write_films(folder: Path, count: int) -> list[Path]:
    """Writes JPEG films of 2,500 x 3,000 pixels."""
    folder.mkdir(exist_ok=True)
    films = [folder / f"{number}.jpg" for number in range(count)]
    for number, film in enumerate(films):
        cv2.imwrite(str(film), radiograph(number))
    return films
