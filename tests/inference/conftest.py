"""A tiny model folder, made once."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from afloc_jax.inference.model import Model, load
from afloc_jax.inference.towers import initial_variables
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.folder import save_model
from configs.afloc import get_config
from data_pipelines.tokens import learn_tokenizer

TEXTS = [
    "small left pleural effusion",
    "findings suggesting pneumonia. no pneumothorax",
    "heart size is normal. no edema",
    "right upper lobe nodule",
]


def tiny_config() -> ConfigDict:
    config = get_config()
    config.name = "tiny"
    config.seed = 3
    config.data.max_tokens = 24
    config.model.projection_dim = 32
    config.model.image.backbone = "resnet_small"
    config.model.image.input_size = 64
    config.model.image.options = {"widths": (8, 16, 16), "stem_width": 8}
    config.model.text.last_layers = 2
    config.model.text.bert = ConfigDict(
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    )
    return config


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, tokenizer = tiny_config(), learn_tokenizer(TEXTS, 200)
    config.model.text.bert.vocab_size = tokenizer.get_vocab_size()
    run, target = RunConfig.from_config(config), tmp_path_factory.mktemp("run") / "model"
    save_model(target, initial_variables(run.model, seed=3), run, tokenizer, {"data": "four sentences"})
    return target


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return load(folder, batch_size=4)


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Grey images of odd sizes."""
    rng = np.random.default_rng(0)
    shapes = ((97, 131), (224, 224), (300, 41), (60, 61), (77, 80))
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
