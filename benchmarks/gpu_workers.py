"""The processes of gpu_card.py. They prepare, report that they are ready, wait for a line, measure and print results.

Each worker prepares before its first `yield`, and yields results (dicts) afterwards. It is not meant to be run by hand.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from benchmarks.gpu_card import END, MARK
from benchmarks.gpu_loss import PRODUCTS
from benchmarks.gpu_sides import (
    build_side,
    configuration,
    our_program,
    random_batch,
    torch_device,
    torch_loss,
    write_weights,
)  # fmt: skip
from data_pipelines.hashes import hashed_sentences

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "torch", "triton", "transformers", "numpy")
FEATURES = 512  # channels of the shallow map before its projection (ResNet-50)
# Rows x inner x columns of the loss's word level at 128 pairs: scores of all, a gradient of the units, and tiles of
# one image and of sixteen.
SHAPES = ((128 * 1444, 512, 4608), (4608, 128 * 1444, 512), (1444, 512, 96), (16 * 1444, 512, 512))
SQUARES = (8192, 16384)
Results = Iterator[dict]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worker", choices=WORKERS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--side")
    parser.add_argument("--set", type=lambda text: text.split("=", 1), action="append", default=[])
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--warm-up", type=int)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--phantoms", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    arguments.config = "configs/afloc.py"
    arguments.set = [(key, {"true": True}.get(value, value)) for key, value in arguments.set]
    if arguments.tiny:
        arguments.batch = max(arguments.batch // 16, 2)
    work = WORKERS[arguments.worker](arguments)
    next(work)
    print(MARK + "ready", flush=True)
    arguments.limit = min(arguments.limit, float(sys.stdin.readline()))
    for result in work:
        print(MARK + json.dumps(result), flush=True)
    print(MARK + END, flush=True)


def repeated(run: Callable[[], object], arguments: argparse.Namespace) -> dict:
    """Seconds of `run`, which ends when its result is there; fewer repeats where they would take too long."""
    until = time.perf_counter() + arguments.limit / 2
    first = [timed(run) for _ in range(arguments.warm_up)]
    taken: list[float] = []
    while len(taken) < arguments.repeats and (not taken or time.perf_counter() < until):
        taken.append(timed(run))
    facts = {"first_seconds": round(first[0], 4)} if first else {}
    facts |= {"seconds": float(np.median(taken)), "fastest": min(taken), "slowest": max(taken)}
    facts = {key: round(value, 5) for key, value in facts.items()}
    return facts | {"repeats": len(taken), "all_seconds": [round(each, 5) for each in taken]}


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def gib(number: int | None) -> float | None:
    return None if number is None else round(number / 2**30, 2)


# Rates


def products(tiny: bool) -> list[tuple[int, int, int]]:
    shapes = [(size, size, size) for size in SQUARES] + list(SHAPES)
    least = [(max(m // 64, 8), max(k // 64, 8), max(n // 64, 8)) for m, k, n in shapes]
    return least if tiny else shapes


def rates(arguments: argparse.Namespace, product: Callable, wait: Callable) -> Results:
    """`product(m, k, n)` is a function that queues one product; `wait(its result)` waits for it."""
    for m, k, n in products(arguments.tiny):
        run, flops = product(m, k, n), 2.0 * m * k * n
        wait(run())
        # Some tenths of a second, and no more results than 10 GB: the queue may hold them all.
        chain = 2 if arguments.tiny else max(1, min(200, int(5e13 / flops), int(5e9 / (m * n))))

        def many(run=run, chain=chain):
            for _ in range(chain):
                last = run()
            wait(last)

        taken = sorted(timed(many) / chain for _ in range(7))
        yield {
            "part": f", {m} x {k} x {n}",
            "tflops": round(flops / taken[3] / 1e12, 1),
            "seconds": round(taken[3], 7),
            "range_tflops": [round(flops / taken[i] / 1e12, 1) for i in (6, 0)],
        }


def versions() -> dict:
    found = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def rate_jax(arguments: argparse.Namespace) -> Results:
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    multiply = jax.jit(jnp.matmul)
    yield {}
    yield {"part": ", device", "device": device.device_kind, **versions()}

    def product(m, k, n):
        left, right = (
            jax.random.normal(key, shape, jnp.bfloat16)
            for key, shape in zip(jax.random.split(jax.random.key(0)), ((m, k), (k, n)), strict=True)
        )
        return lambda: multiply(left, right)

    yield from rates(arguments, product, jax.block_until_ready)
    large = jnp.ones(2**20 if arguments.tiny else 2**29, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    jax.block_until_ready(add(large))
    taken = min(timed(lambda: jax.block_until_ready(add(large))) for _ in range(7))
    yield {"part": ", copy", "gigabytes_per_second": round(2 * large.nbytes / taken / 1e9)}


def rate_torch(arguments: argparse.Namespace) -> Results:
    import torch

    device = torch_device()
    torch.ones(8, device=device).sum().item()
    yield {}

    def product(m, k, n):
        left, right = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
        return lambda: left @ right

    yield from rates(arguments, product, lambda result: result[0, 0].item())


# Loss


def embeddings(config) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Features, projection, deep map, image vectors, words, sentences, reports: with the spread of a trained model's
    products (about 3); and the counts."""
    rng = np.random.default_rng(0)
    pairs, slots, width = config.training.batch_size, config.data.max_tokens, config.model.projection_dim
    features = FEATURES if config.model.image.backbone == "resnet50" else min(FEATURES, width)
    shallow, deep = ((-(-config.model.image.input_size // step)) ** 2 for step in (8, 16))
    shapes = [(pairs, shallow, features), (features, width), (pairs, deep, width), (pairs, width)]
    shapes += [(pairs, slots, width), (pairs, slots, width), (pairs, width)]
    scales = (1, features**-0.5, 1, 1, 0.1, 0.1, 1)
    arrays = [rng.standard_normal(shape, np.float32) * np.float32(s) for shape, s in zip(shapes, scales, strict=True)]
    batch = random_batch(config)
    return arrays, {level: batch[f"{level}_count"] for level in ("word", "sentence")}


def useful_flops(arrays: list[np.ndarray], counts: dict[str, np.ndarray], low_rank: bool) -> float:
    """Eight products of valid units with regions, as gpu_loss.py counts them."""
    (pairs, shallow, features), (_, deep, width) = arrays[0].shape, arrays[2].shape
    word = int(counts["word"].sum()) * shallow * (features if low_rank else width)
    return 2.0 * PRODUCTS * pairs * (word + int(counts["sentence"].sum()) * deep * width)


def loss_ours(arguments: argparse.Namespace) -> Results:
    import jax
    import jax.numpy as jnp

    from afloc_jax.levels import ImageLevels, TextLevels
    from afloc_jax.losses import contrastive_losses

    config = configuration(arguments, arguments.batch)
    arrays, counts = embeddings(config)
    low_rank = config.loss.is_low_rank
    flops = useful_flops(arrays, counts, low_rank)
    dtype = jnp.dtype(config.training.precision)
    valid = jnp.asarray(counts["word"], jnp.int32), jnp.asarray(counts["sentence"], jnp.int32)

    def total(given):
        *maps, deep, whole, words, sentences, report = given
        factors = (maps[0], maps[1]) if low_rank else None
        image = ImageLevels(maps[0], deep, whole, factors)
        return contrastive_losses(image, TextLevels(words, sentences, report, *valid, None), config.loss).total

    def square(maps):
        return maps.astype(dtype).reshape(len(maps), int(maps.shape[1] ** 0.5), -1, maps.shape[2])

    features, kernel, deep, *vectors = map(jnp.asarray, arrays)
    shallow = (square(features), kernel) if low_rank else (square(features @ kernel),)
    given = jax.block_until_ready((*shallow, square(deep), *vectors))
    del features, arrays
    began = time.perf_counter()
    program = jax.jit(jax.value_and_grad(total)).lower(given).compile()
    seconds, memory = round(time.perf_counter() - began, 1), program.memory_analysis()
    facts = {"compile_seconds": seconds, "temporary_gib": gib(memory.temp_size_in_bytes) if memory else None}
    yield {}
    result: list = []  # the loss and its gradients

    def run():
        result.clear()  # the gradients before would add to the peak
        result.extend(jax.block_until_ready(program(given)))

    facts = repeated(run, arguments) | facts
    squares = (np.square(np.asarray(gradient, np.float64)).sum() for gradient in result[1])
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    found = {"loss": float(result[0]), "gradient_norm": float(f"{sum(squares) ** 0.5:.6g}")}
    yield facts | found | {"peak_gib": gib(peak), "useful_tflops": rate(flops, facts)}


def rate(flops: float, facts: dict) -> float:
    return round(flops / facts["seconds"] / 1e12, 2)


def loss_torch(arguments: argparse.Namespace) -> Results:
    import torch

    config = configuration(arguments, arguments.batch)
    arrays, counts = embeddings(config)
    flops = useful_flops(arrays, counts, low_rank=False)
    device, half = torch_device(), config.training.precision == "bfloat16"
    features, kernel, deep, *vectors = (torch.from_numpy(array).to(device) for array in arrays)
    dtype = torch.bfloat16 if half else torch.float32
    leaves = [(features @ kernel).to(dtype), deep.to(dtype), *vectors]
    for leaf in leaves:
        leaf.requires_grad_()
    del features, arrays
    lists = {level: count.tolist() for level, count in counts.items()}
    total = torch_loss(config, lists, "compiled" in arguments.side, "checkpointed" in arguments.side)
    found = {}

    def run():
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = total(*leaves)
        loss.backward()
        for leaf in leaves:
            leaf.grad = None
        found["loss"] = loss.item()

    run()
    yield {}
    facts = repeated(run, arguments)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    yield facts | {"loss": found["loss"], "peak_gib": gib(peak), "useful_tflops": rate(flops, facts)}


# Step


def weights(arguments: argparse.Namespace) -> Results:
    arguments.weights, whole = arguments.weights.with_suffix(".part"), arguments.weights
    write_weights(configuration(arguments, 2), arguments.weights)
    arguments.weights.rename(whole)
    yield {}
    yield {"written": True}


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.2)


def step(arguments: argparse.Namespace) -> Results:
    began, ours = time.perf_counter(), arguments.side == "ours"
    side = build_side(configuration(arguments, arguments.batch), arguments.weights, arguments.side)
    losses = []
    if not ours:  # compiled by its first step
        wait_for(arguments.weights)
        side.start()
        losses.append(side.step())
    made = {"build_seconds": round(time.perf_counter() - began, 1)}
    yield {}
    if ours:
        wait_for(arguments.weights)
        side.start()
    facts = repeated(lambda: losses.append(side.step()), arguments) | made
    pairs = arguments.batch / facts["seconds"]
    yield facts | {"first_loss": losses[0], "pairs_per_second": round(pairs, 1), "peak_gib": gib(side.peak())}


# Training


def cut_to(slots: int, name: str, array: np.ndarray) -> np.ndarray:
    """An array of a batch, as it is with so many token slots."""
    if array.ndim == 1:  # counts
        return np.minimum(array, slots - 2)
    return array[:, : hashed_sentences(slots) if name == "sentence_hashes" else slots]


def train(arguments: argparse.Namespace) -> Results:
    """Batches are made here from the file's images and tokens, and placed one by one: no input pipeline."""
    import cv2
    import jax

    config = configuration(arguments, arguments.batch, dropout=True)
    program, state_of, place = our_program(config)
    data = np.load(arguments.phantoms)
    parts = np.split(data["jpeg"], data["ends"][:-1])
    images = np.stack([np.asarray(cv2.imdecode(part, cv2.IMREAD_GRAYSCALE)) for part in parts])
    tokens = {name: data[name] for name in data.files if name not in ("jpeg", "ends", "index")}
    if arguments.tiny:
        images = images[:, :192:4, :192:4]
        tokens["token_ids"] %= config.model.text.structure.vocab_size
    slots = config.data.max_tokens
    rows = slice(0, arguments.batch)

    def batch(number: int) -> dict[str, np.ndarray]:
        cut = {name: cut_to(slots, name, array[number][rows]) for name, array in tokens.items()}
        return cut | {"image": np.ascontiguousarray(images[data["index"][number][rows]])}

    yield {}
    wait_for(arguments.weights)
    state, losses, began = state_of(arguments.weights), [], time.perf_counter()
    with (arguments.out / "losses.jsonl").open("a") as lines:
        for number in range(min(len(tokens["word_count"]), 5 if arguments.tiny else 300)):
            state, metrics = program(state, place(batch(number)))
            found = metrics.named()
            losses.append(found["loss"])
            passed = round(time.perf_counter() - began, 3)
            lines.write(json.dumps({"step": number, "seconds": passed, **found}) + "\n")
            lines.flush()
            if passed > arguments.limit - 10:
                break
    passed = time.perf_counter() - began
    yield (
        {"steps": len(losses), "seconds_a_step": round(passed / len(losses), 4)}
        | {
            f"mean_loss_{name}": round(float(np.mean(part)), 4)
            for name, part in (("first_20", losses[:20]), ("last_20", losses[-20:]))
        }
        | {"device": jax.devices()[0].device_kind}
    )


WORKERS = {f.__name__: f for f in (rate_jax, rate_torch, loss_ours, loss_torch, weights, step, train)}


if __name__ == "__main__":
    main()
