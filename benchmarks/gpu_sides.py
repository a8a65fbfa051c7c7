"""The training steps of this program and of plain PyTorch that gpu_step.py and gpu_card.py measure.

This file needs none of the data packages, so that it runs where only JAX and PyTorch are installed.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from afloc_jax.training.gradients import Batch
    from afloc_jax.training.step import StepMetrics, TrainState

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS, WORDS_SPREAD, SENTENCE = 36, 15, 6  # typical of a report, as in docs/scale.md
NO_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
TINY = {
    "model.projection_dim": 160, "model.image.backbone": "resnet18", "model.image.input_size": 64,
    "data.max_tokens": 24, "data.builder": {"image_size": 48}, "training.precision": "float32",
    "model.text.bert": {
        "hidden_size": 160, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 500
    },
}  # fmt: skip


def configuration(arguments: argparse.Namespace, batch: int, dropout: bool = False):
    from ml_collections import ConfigDict

    from afloc_jax.training import config as configs
    from afloc_jax.training.settings import RunConfig

    tiny = TINY if arguments.tiny else {}
    config = configs.load(REPOSITORY / arguments.config)
    with config.unlocked():
        for key, value in [*tiny.items(), *arguments.set]:
            configs.override(config, key, ConfigDict(value) if isinstance(value, dict) else value)
        config.training.batch_size = batch
        for name in () if dropout else NO_DROPOUT:
            config.model.text.bert[name] = 0.0
        config.model.text.bert.vocab_size = config.model.text.bert.get("vocab_size", 28996)
    return RunConfig.from_config(config)


def random_batch(config, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as training makes them (docs/architecture.md), of noise; lengths as of reports, a word a piece."""
    from data_pipelines.hashes import hashed_sentences  # gpu_card.py imports this file before it installs wheels

    rng = np.random.default_rng(seed)
    pairs, slots = config.training.batch_size, config.data.max_tokens
    side = config.data.image_size
    words = np.clip(rng.normal(WORDS, WORDS_SPREAD, pairs).astype(int), 2, slots - 2)
    slot = np.arange(slots)
    used = slot <= words[:, None] + 1  # [CLS], words, [SEP]
    ordinal = np.broadcast_to(1 + (slot - 1) // (SENTENCE + 1), used.shape)
    period = (slot % (SENTENCE + 1) == 0) & (slot > 0)
    sentence_ids = np.where(used & ~period, ordinal, -1)
    sentence_ids[:, 0] = 0
    rows = np.arange(pairs)
    count = sentence_ids[rows[:, None], np.where(slot <= words[:, None], slot, 0)].max(1)  # sentences
    sentence_ids[rows, words + 1] = count + 1
    tokens = rng.integers(1, config.model.text.structure.vocab_size, (pairs, slots))
    image = rng.integers(0, 256, (pairs, side, side), dtype=np.uint8)
    hashes = rng.integers(1, 2**32, (pairs, hashed_sentences(slots) + 1, 2), dtype=np.uint32)  # no two texts are alike
    hashes[:, 1:][np.arange(hashed_sentences(slots)) > count[:, None]] = 0
    return {
        "image": image,
        "token_ids": np.where(used, tokens, 0).astype(np.int32),
        "word_ids": np.where(used, slot, -1).astype(np.int32),
        "sentence_ids": sentence_ids.astype(np.int32),
        "word_count": (words + 1).astype(np.int32),
        "sentence_count": (count + 1).astype(np.int32),
        "report_hash": hashes[:, 0],
        "sentence_hashes": hashes[:, 1:],
    }


def initialize(config):
    """A function without arguments for the variables before step 0. The loop's own module needs the data packages."""
    import jax

    from afloc_jax.models import build, initial_variables

    return lambda: initial_variables(build(config.model), jax.random.key(config.seed))


def write_weights(config, path: Path) -> None:
    """Random weights under the published names."""
    import jax
    from safetensors.numpy import save_file

    from afloc_jax.weights.torch_names import to_torch, with_counters

    # Run once, on a CPU: optimising the code of hundreds of random draws takes longer than running it unoptimised.
    variables = jax.jit(initialize(config), compiler_options={"xla_backend_optimization_level": 0})()
    state = with_counters(to_torch(jax.device_get(variables), config.model))
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)


class Program(NamedTuple):
    """Our compiled step, and what it takes: the state before step 0 from a weights file, and a batch on the device."""

    step: Callable[["TrainState", "Batch"], tuple["TrainState", "StepMetrics"]]
    start: Callable[[Path], "TrainState"]
    place: Callable[..., "Batch"]


class Side(NamedTuple):
    """One implementation of training, compiled, where possible, before it has weights."""

    start: Callable[[], None]  # loads the weights
    step: Callable[[], float]  # the loss
    peak: Callable[[], int | None]  # bytes
    device: str


def our_program(config) -> Program:
    import jax
    from safetensors.numpy import load_file

    from afloc_jax.compiled import keep_compiled
    from afloc_jax.training.assembly import assemble
    from afloc_jax.training.mesh import build_mesh, place_batch
    from afloc_jax.weights.torch_names import from_torch

    keep_compiled()  # the next rounds compile no more
    run = assemble(config, build_mesh(jax.devices()[:1]))

    def start(weights: Path):
        return run.state(from_torch(load_file(weights), config.model))

    return Program(run.lower().compile(), start, lambda batch: place_batch(batch, run.mesh))


def our_side(config, weights: Path) -> Side:
    import jax

    program, state_of, place = our_program(config)
    held: dict = {}

    def start() -> None:
        held.update(state=state_of(weights), batch=place(random_batch(config)))

    def step() -> float:
        held["state"], metrics = program(held["state"], held["batch"])
        jax.block_until_ready(held["state"])
        return float(metrics.loss)

    device = jax.devices()[0]
    return Side(start, step, lambda: (device.memory_stats() or {}).get("peak_bytes_in_use"), device.device_kind)


def torch_device():
    import torch

    cuda = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
    return torch.device("cuda" if cuda else "cpu")


def torch_loss(config, counts: dict[str, list[int]], compiled: bool, checkpointed: bool) -> Callable:
    """The published loss of regions [B, N, D] of both maps, the image vectors, words, sentences and reports."""
    import torch
    from torch.utils.checkpoint import checkpoint

    from tests.reference.torch_losses import cross_entropies, local_column, report_similarities

    loss = config.loss
    column: Callable = torch.compile(local_column, dynamic=True) if compiled else local_column

    def similarities(regions, units, level):
        columns = []
        for caption, count in zip(units, counts[level], strict=True):
            given = regions, caption[:count], loss.attention_temperature, loss.pooling_temperature
            columns.append(checkpoint(column, *given, use_reentrant=False) if checkpointed else column(*given))
        return loss.contrast_temperature * torch.stack(columns, dim=1)

    def total(shallow, deep, whole, words, sentences, report):
        found = sum(cross_entropies(report_similarities(whole, report, loss.contrast_temperature)))
        found = found + sum(cross_entropies(similarities(deep, sentences, "sentence")))
        return found + sum(cross_entropies(similarities(shallow, words, "word")))

    return total


def save_blocks(images, texts, compiled: bool) -> None:
    """`training.remat=blocks` for PyTorch: keep the outputs of residual blocks and of BERT's layers alone.

    BERT is not compiled here: its layers hand out hidden states through hooks.
    """
    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    class Saved(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.run = block, torch.compile(block) if compiled else block

        def forward(self, x):
            return checkpoint(self.run, x, use_reentrant=False)

    torch._dynamo.config.recompile_limit = 64  # a program for each shape of block
    for stage in range(1, 5):
        layer = getattr(images.model, f"layer{stage}")
        for index, block in enumerate(layer):
            layer[index] = Saved(block)
    texts.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def torch_side(config, weights: Path, compiled: bool, checkpointed: bool) -> Side:
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from transformers import BertConfig, BertModel

    from tests.reference.torch_resnet import TorchImageEncoder, torch_backbone
    from tests.reference.torch_trajectory import text_units

    device = torch_device()
    cuda = device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    model = nn.ModuleDict({"text_encoder": nn.Module()})
    model["img_encoder"] = TorchImageEncoder(torch_backbone(config.model.image.backbone), config.model.projection_dim)
    model["text_encoder"].model = BertModel(BertConfig(**config.model.text.bert))
    settings, side = config.optimizer, config.model.image.input_size
    arrays = random_batch(config)
    counts = {level: arrays.pop(f"{level}_count").tolist() for level in ("word", "sentence")}
    loss = torch_loss(config, counts, compiled, checkpointed)
    images, texts = model["img_encoder"], model["text_encoder"].model
    held: dict = {}

    def start() -> None:
        model.load_state_dict(load_file(weights), strict=True)
        model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch has no such type
        held["images"], held["texts"] = images, texts
        if config.training.remat == "blocks":
            save_blocks(images, texts, compiled)
        elif compiled:
            held["images"], held["texts"] = torch.compile(images), torch.compile(texts)
        held["adam"] = torch.optim.Adam(
            model.parameters(), settings.lr, (settings.b1, settings.b2), weight_decay=settings.weight_decay, fused=cuda
        )
        batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        held["batch"] = batch | {name: batch[name].long() for name in ("token_ids", "word_ids", "sentence_ids")}

    def step() -> float:
        adam, batch = held["adam"], held["batch"]
        adam.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
            x = ((batch["image"].float() / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)
            x = nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=True)
            shallow, deep, whole = held["images"](x.contiguous(memory_format=torch.channels_last))
            words, sentences, report = text_units(held["texts"], batch)
            shallow, deep = (maps.flatten(2).transpose(1, 2) for maps in (shallow, deep))
            total = loss(shallow, deep, whole, words, sentences, report)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        adam.step()
        return total.item()

    name = torch.cuda.get_device_name() if cuda else "cpu"
    return Side(start, step, lambda: torch.cuda.max_memory_allocated() if cuda else None, name)


def build_side(config, weights: Path, name: str) -> Side:
    if name == "ours":
        return our_side(config, weights)
    return torch_side(config, weights, "compiled" in name, "checkpointed" in name)
