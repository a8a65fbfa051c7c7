"""Time and memory of the whole training step on a GPU, against the same model in plain PyTorch.

    python -m benchmarks.gpu_step --batch 128 1024 [--sides ours eager compiled] [--rounds 5] [--out step.json]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_step --tiny --batch 8 --rounds 2 --steps 2     a rehearsal without a card

ours      the step of launch.py: value, gradients, clipping, Adam
eager     ResNet, Hugging Face's BERT and the published loss (a loop over captions), autocast to bfloat16, fused Adam
compiled  the same, with torch.compile over both towers and over the loss of a caption

`eager checkpointed` and `compiled checkpointed` keep nothing of a caption's loss and compute it again backwards, as a
careful user would whose batch does not fit. Dropout is off on all sides. One set of weights and one batch, made here
by seed, go to all sides through a file, and the losses of the first step must agree. Batches lie on the device; a step
ends when its loss has been read. A round gives each side in turn a process and the card to itself: two steps to warm
up, then `--steps` timed ones, of which the median counts; the table has the median of rounds and their range. Memory is
the device allocator's peak (`memory_stats`, `max_memory_allocated`). A side without enough memory says so in its row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
SIDES = ("ours", "eager", "compiled", "eager checkpointed", "compiled checkpointed")
WARM_UP = 2
WORDS, WORDS_SPREAD, SENTENCE = 36, 15, 6  # of a report, as in docs/scale.md
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the first loss
NO_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
TINY = {
    "model.projection_dim": 32, "model.image.backbone": "resnet18", "model.image.input_size": 64,
    "data.max_tokens": 24, "data.builder": {"image_size": 48}, "training.precision": "float32",
    "model.text.bert": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 500
    },
}  # fmt: skip


def configuration(arguments: argparse.Namespace, batch: int):
    from ml_collections import ConfigDict

    from afloc_jax.training import config as configs

    tiny = TINY if arguments.tiny else {}
    config = configs.load(REPOSITORY / arguments.config)
    with config.unlocked():
        for key, value in [*tiny.items(), *arguments.set]:
            configs.override(config, key, ConfigDict(value) if isinstance(value, dict) else value)
        config.training.batch_size = batch
        for name in NO_DROPOUT:
            config.model.text.bert[name] = 0.0
        config.model.text.bert.vocab_size = config.model.text.bert.get("vocab_size", 28996)
    return config


def random_batch(config, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as training makes them (docs/architecture.md), of noise; lengths as of reports, a word a piece."""
    rng = np.random.default_rng(seed)
    pairs, slots = config.training.batch_size, config.data.max_tokens
    side = config.data.builder.get("image_size", 224)
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
    tokens = rng.integers(1, config.model.text.bert.vocab_size, (pairs, slots))
    return {
        "image": rng.integers(0, 256, (pairs, side, side), dtype=np.uint8),
        "token_ids": np.where(used, tokens, 0).astype(np.int32),
        "word_ids": np.where(used, slot, -1).astype(np.int32),
        "sentence_ids": sentence_ids.astype(np.int32),
        "word_count": (words + 1).astype(np.int32),
        "sentence_count": (count + 1).astype(np.int32),
    }


def write_weights(config, path: Path) -> None:
    """Random weights under the published names."""
    import jax
    from safetensors.numpy import save_file

    from afloc_jax.training.train import _initial_variables
    from afloc_jax.weights.torch_names import to_torch, with_counters

    variables = _initial_variables(config, config.data.builder.get("image_size", 224))
    state = with_counters(to_torch(jax.device_get(variables), config.model))
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)


# Sides: each gives `step() -> loss` and `peak() -> bytes or None`, and the name of its device.


def our_side(config, weights: Path) -> tuple[Callable, Callable, str]:
    import jax
    from safetensors.numpy import load_file

    from afloc_jax.compiled import keep_compiled
    from afloc_jax.models import build, trainable
    from afloc_jax.training.mesh import build_mesh, place_batch, place_state
    from afloc_jax.training.optimizer import build_direction, build_schedule, freeze
    from afloc_jax.training.step import build_train_step, new_state
    from afloc_jax.training.train import PRECISIONS
    from afloc_jax.weights.torch_names import from_torch

    keep_compiled()  # the next rounds compile no more
    mesh = build_mesh(jax.devices()[:1])
    model = build(config.model, dtype=PRECISIONS[config.training.precision])
    variables = from_torch(load_file(weights), config.model)
    direction = freeze(build_direction(config.optimizer), trainable(variables["params"], config.model))
    train = build_train_step(model, config, direction, build_schedule(config.optimizer, 1000, 5000), mesh)
    holder = [place_state(new_state(place_state(variables, mesh), direction), mesh)]
    batch = place_batch(random_batch(config), mesh)

    def step() -> float:
        holder[0], metrics = train(holder[0], batch)
        jax.block_until_ready(holder[0])
        return float(metrics["loss"])

    device = jax.devices()[0]
    return step, lambda: (device.memory_stats() or {}).get("peak_bytes_in_use"), device.device_kind


def torch_side(config, weights: Path, compiled: bool, checkpointed: bool) -> tuple[Callable, Callable, str]:
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.utils.checkpoint import checkpoint
    from transformers import BertConfig, BertModel

    from tests.reference.torch_losses import cross_entropies, local_column, report_similarities
    from tests.reference.torch_resnet import TorchImageEncoder, torch_backbone
    from tests.reference.torch_trajectory import text_units

    cuda = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cudnn.benchmark = True
    model = nn.ModuleDict({"text_encoder": nn.Module()})
    model["img_encoder"] = TorchImageEncoder(torch_backbone(config.model.image.backbone), config.model.projection_dim)
    model["text_encoder"].model = BertModel(BertConfig(**config.model.text.bert.to_dict()))
    model.load_state_dict(load_file(weights), strict=True)
    model.train().to(device, memory_format=torch.channels_last)
    settings, side = config.optimizer, config.model.image.input_size
    adam = torch.optim.Adam(
        model.parameters(), settings.lr, (settings.b1, settings.b2), weight_decay=settings.weight_decay, fused=cuda
    )
    arrays = random_batch(config)
    counts = {level: arrays.pop(f"{level}_count").tolist() for level in ("word", "sentence")}
    batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    batch |= {name: batch[name].long() for name in ("token_ids", "word_ids", "sentence_ids")}
    loss = config.loss
    images, texts = model["img_encoder"], model["text_encoder"].model
    column: Callable = local_column
    if compiled:
        images, texts = torch.compile(images), torch.compile(texts)
        column = torch.compile(local_column, dynamic=True)

    def similarities(maps, units, level):
        regions, columns = maps.flatten(2).transpose(1, 2), []
        for caption, count in zip(units, counts[level], strict=True):
            given = regions, caption[:count], loss.attention_temperature, loss.pooling_temperature
            columns.append(checkpoint(column, *given, use_reentrant=False) if checkpointed else column(*given))
        return loss.contrast_temperature * torch.stack(columns, dim=1)

    def step() -> float:
        adam.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
            x = ((batch["image"].float() / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)
            x = nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=True)
            shallow, deep, whole = images(x.contiguous(memory_format=torch.channels_last))
            words, sentences, report = text_units(texts, batch)
            total = sum(cross_entropies(report_similarities(whole, report, loss.contrast_temperature)))
            total = total + sum(cross_entropies(similarities(deep, sentences, "sentence")))
            total = total + sum(cross_entropies(similarities(shallow, words, "word")))
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        adam.step()
        return total.item()

    name = torch.cuda.get_device_name() if cuda else "cpu"
    return step, lambda: torch.cuda.max_memory_allocated() if cuda else None, name


def work(arguments: argparse.Namespace) -> None:
    """A worker process: a JSON line with the first loss, the seconds of each timed step and the peak."""
    config = configuration(arguments, arguments.batch[0])
    if arguments.worker == "weights":
        return write_weights(config, arguments.weights)
    if arguments.worker == "ours":
        step, peak, device = our_side(config, arguments.weights)
    else:
        compiled, checkpointed = "compiled" in arguments.worker, "checkpointed" in arguments.worker
        step, peak, device = torch_side(config, arguments.weights, compiled, checkpointed)
    began, seconds = time.perf_counter(), []
    first = step()
    starting = time.perf_counter() - began
    for number in range(WARM_UP - 1 + arguments.steps):
        began = time.perf_counter()
        step()
        seconds += [time.perf_counter() - began] if number >= WARM_UP - 1 else []
    facts = {"first_loss": first, "first_step_seconds": starting, "seconds": seconds}
    print(json.dumps(facts | {"peak_bytes": peak(), "device": device}))


def run_worker(arguments: argparse.Namespace, batch: int, weights: Path, worker: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.gpu_step", "--worker", worker, "--weights", str(weights)]
    command += ["--batch", str(batch), "--steps", str(arguments.steps), "--config", arguments.config]
    command += ["--tiny"] * arguments.tiny
    for key, value in arguments.set:
        command += ["--set", f"{key}={value}"]
    # JAX would take three quarters of the card at once, and report that.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if worker == "weights":
        environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    text = done.stderr.strip()
    if "RESOURCE_EXHAUSTED" in text or "OutOfMemoryError" in text:
        return {"failed": "out of memory"}
    return {"failed": text.splitlines()[-1] if text else f"exit status {done.returncode}"}


def measure(arguments: argparse.Namespace, batch: int) -> dict[str, dict]:
    """Rows of all sides at one batch size. Raises SystemExit where first losses differ: it is not the same model."""
    found: dict[str, list[dict]] = {side: [] for side in arguments.sides}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        made = run_worker(arguments, batch, weights, "weights")
        if made:
            raise SystemExit(f"no weights: {made['failed']}")
        for number in range(arguments.rounds):
            for side in arguments.sides:
                if not any("failed" in row for row in found[side]):
                    print(f"batch {batch}, round {number + 1} of {arguments.rounds}: {side}", file=sys.stderr)
                    found[side].append(run_worker(arguments, batch, weights, side))
    rows = {side: summary(results, batch) for side, results in found.items()}
    losses = {side: row["first_loss"] for side, row in rows.items() if "first_loss" in row}
    tolerance = TOLERANCE[configuration(arguments, batch).training.precision]
    if losses and max(losses.values()) - min(losses.values()) > tolerance * abs(min(losses.values())):
        raise SystemExit(f"batch {batch}: first losses differ by more than {tolerance} of themselves: {losses}")
    return rows


def summary(results: list[dict], batch: int) -> dict:
    for result in results:
        if "failed" in result:
            return result
    medians = [float(np.median(result["seconds"])) for result in results]
    return {
        "device": results[0]["device"],
        "first_loss": results[0]["first_loss"],
        "seconds": float(np.median(medians)),
        "fastest": min(medians),
        "slowest": max(medians),
        "pairs_per_second": batch / float(np.median(medians)),
        "first_step_seconds": results[0]["first_step_seconds"],
        "peak_bytes": results[-1]["peak_bytes"],
    }


def print_table(batches: dict[int, dict]) -> None:
    print("| batch | side | median s (range) | pairs/s | peak GiB | first step s | first loss |\n" + "|---" * 7 + "|")
    for batch, rows in batches.items():
        for side, row in rows.items():
            if "failed" in row:
                print(f"| {batch} | {side} | {row['failed']} | | | | |")
                continue
            peak = f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else ""
            print(
                f"| {batch} | {side} | {row['seconds']:.3f} ({row['fastest']:.3f} to {row['slowest']:.3f}) "
                f"| {row['pairs_per_second']:.0f} | {peak} | {row['first_step_seconds']:.0f} "
                f"| {row['first_loss']:.4f} |"
            )


def main() -> None:
    from afloc_jax.cli.arguments import setting

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/afloc.py")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters in float32")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--worker", choices=("weights", *SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    batches = {batch: measure(arguments, batch) for batch in arguments.batch}
    print_table(batches)
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "set": [list(pair) for pair in arguments.set]}
    facts |= {"versions": {name: version(name) for name in ("jax", "torch", "transformers")}, "batches": batches}
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
