"""A run small enough to train in seconds: synthetic records in memory, a tiny network, a small BERT."""

import json
import os
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from afloc_jax.files import Path
from afloc_jax.settings import plain
from afloc_jax.training import loop as loops
from afloc_jax.training import start
from afloc_jax.training import train as training
from afloc_jax.training.assembly import Assembly, assemble
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.config import override
from afloc_jax.training.loop import Data
from afloc_jax.training.mesh import build_mesh
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.tracing import StepRange
from configs.afloc import get_config
from data_pipelines.batches import training_batches, training_tokenizer
from data_pipelines.records import Record
from data_pipelines.tokens import load_tokenizer

SENTENCES = (
    "small left pleural effusion",
    "no pneumothorax",
    "the heart is enlarged",
    "opacity in the right lower zone",
    "lungs are clear",
)


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
        name = f"record{seed}_{number}"
        made.append(Record(name, image, sentences, 1, name, "frontal", side, side, []))
    return made


def batches_of(source, config, tokenizer):
    """The training batches of a run of this config."""
    run = RunConfig.from_config(plain(config))
    size, negatives = run.training.batch_size, run.loss.hard_negatives
    return training_batches(source, run.data, tokenizer, batch_size=size, seed=run.seed, hard_negatives=negatives)


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
    config.evaluation.calibrate = False
    return config


@pytest.fixture
def config() -> ConfigDict:
    return tiny_config()


def train(
    config: ConfigDict, workdir, dry_run: bool = False, profile: StepRange | None = None, from_scratch: bool = False
) -> int:
    """What launch.py does with a config file and a folder."""
    return training.train(RunConfig.from_config(config), Path(workdir), dry_run, profile, from_scratch)


def changed(config: ConfigDict, changes) -> ConfigDict:
    """The config with other values at dotted keys."""
    for key, value in changes.items():
        override(config, key, value)
    return config


def assembled(config: ConfigDict, devices: int = 1, source=None) -> tuple[Assembly, Data]:
    """A run of `records` put together on so many devices, with a vocabulary learned from them."""
    source = source or records(24, seed=1)
    checked = RunConfig.from_config(config)
    tokenizer = training_tokenizer(source, vocabulary_size=checked.model.text.structure.vocab_size)
    mesh = build_mesh(jax.devices()[:devices], checked.training.fsdp)
    return assemble(start.with_vocabulary(checked, tokenizer), mesh, 3), Data(source, records(8, seed=2), tokenizer)


@pytest.fixture
def memory(monkeypatch):
    """`open_source` hands out synthetic records: 24 to train on, 8 to validate. Returns what each split holds."""
    splits = {"train": records(24, seed=1), "validation": records(8, seed=2)}
    monkeypatch.setattr(training, "open_source", lambda name, directory, split, **_: splits[split])
    return splits


@pytest.fixture(scope="module")
def assemblies():
    """The runs that `steps_compiled_once` has put together in this file of tests."""
    return {}


@pytest.fixture
def steps_compiled_once(assemblies, monkeypatch):
    """Runs of an equal config share their steps, whose tracing takes most of a run's time.

    For tests that change nothing that is traced.
    """

    def shared(config, mesh, *steps):
        key = json.dumps(config.plain(), sort_keys=True), mesh, steps
        if key not in assemblies:
            assemblies[key] = assemble(config, mesh, *steps)
        return assemblies[key]

    monkeypatch.setattr(training, "assemble", shared)


def arrays(folder):
    """Every array that Orbax wrote to `folder`, by path in its tree, read without knowing its structure."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder.absolute())
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def last_arrays(workdir):
    step = Checkpoints(workdir / "checkpoints", 1).steps()[-1]
    return arrays(workdir / "checkpoints" / str(step) / "state")


def train_config(config, workdir):
    """The config with the vocabulary size that the run in `workdir` gave it."""
    return start.with_vocabulary(RunConfig.from_config(config), load_tokenizer(workdir / "tokenizer"))


def signal_at(monkeypatch, batch, number=signal.SIGTERM):
    """The process gets a signal as it places its batch number `batch`, counted from 0."""
    place = loops.place_batch
    count = iter(range(1000))

    def placing(arrays, mesh):
        if next(count) == batch:
            os.kill(os.getpid(), number)
        return place(arrays, mesh)

    monkeypatch.setattr(loops, "place_batch", placing)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted run of the tiny config."""
    with pytest.MonkeyPatch.context() as patch:
        splits = {"train": records(24, seed=1), "validation": records(8, seed=2)}
        patch.setattr(training, "open_source", lambda name, directory, split, **_: splits[split])
        workdir = tmp_path_factory.mktemp("finished")
        assert train(tiny_config(), workdir) == 0
    return workdir


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "##s", "small", "left", "no", "the", "heart", "is"]


@pytest.fixture
def bert(tmp_path):
    """A Hugging Face folder of the tiny config's sizes, but for a padded vocabulary; and its weights."""
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=16, max_position_embeddings=32, **sizes)
    state = BertModel(config).state_dict()
    save_file({f"bert.{name}": value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}))
    return folder, state
