"""A run small enough to train in seconds: synthetic records in memory, a tiny network, a small BERT."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from afloc_jax.training import train as training
from configs.afloc import get_config
from data_pipelines.batches import training_batches, training_tokenizer
from data_pipelines.reading import Record

SENTENCES = (
    "small left pleural effusion",
    "no pneumothorax",
    "the heart is enlarged",
    "opacity in the right lower zone",
    "lungs are clear",
)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Compiled programs are shared between the tests of a session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


class Records(list):
    """Records in memory; `content_hash` as a prepared source has it."""

    content_hash = "synthetic"


def records(count: int, seed: int, side: int = 32) -> Records:
    """Squares with a bright corner that says which sentences come with them."""
    rng = np.random.default_rng(seed)
    made = Records()
    for number in range(count):
        image = rng.integers(0, 60, (side, side), dtype=np.uint8)
        kinds = rng.choice(len(SENTENCES), 2, replace=False)
        for kind in kinds:
            image[4 * kind : 4 * kind + 4, :16] = 200
        sentences = [SENTENCES[kind] for kind in kinds]
        made.append(Record(f"record{seed}_{number}", image, sentences, 1, "", "frontal", side, side, []))
    return made


def tokenizer_of(source, config: ConfigDict):
    """The tokenizer that a run of this config learns from its training records."""
    return training_tokenizer(source, config.model.text.tokenizer, config.model.text.bert.vocab_size)


def batches_of(source, config: ConfigDict, tokenizer):
    """The training batches of a run of this config."""
    return training_batches(source, config.data, tokenizer, batch_size=config.training.batch_size, seed=config.seed)


def tiny_config() -> ConfigDict:
    """Six steps of eight pairs, validated after three and six."""
    config = get_config()
    config.name = "tiny"
    config.data.max_tokens = 24
    config.model.projection_dim = 16
    config.model.image.backbone = "resnet_small"
    config.model.image.input_size = 32
    config.model.image.options = ConfigDict({"widths": (4, 8, 8), "stem_width": 4})
    config.model.text.bert = ConfigDict(
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        | {"vocab_size": 120, "max_position_embeddings": 32}
    )
    config.model.text.last_layers = 1
    config.optimizer.lr = 1e-3
    config.training.update(batch_size=8, epochs=2, precision="float32", log_every=1, keep_best=2)
    return config


@pytest.fixture
def config() -> ConfigDict:
    return tiny_config()


@pytest.fixture
def memory(monkeypatch):
    """`open_source` hands out synthetic records: 24 to train on, 8 to validate. Returns what each split holds."""
    splits = {"train": records(24, seed=1), "validation": records(8, seed=2)}
    monkeypatch.setattr(training, "open_source", lambda name, directory, split, **_: splits[split])
    return splits
