"""The share of a GPU's measured bfloat16 matrix rate that the local losses reach, value and gradients together.

    python -m benchmarks.gpu_loss [--batch 128 512 1024] [--rows word sentence] [--repeats 7] [--out loss.json]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_loss --batch 4 --size 256 --regions 49 25 --repeats 2     a rehearsal

The rate is that of the best of square bfloat16 products (`--size`), each repeated in one program. The losses run on one
device through XLA (`losses/tiled.py`): B images against B captions of a mean of 36 words and 6 sentences, 1,444 regions
of width 512 (the word level with `loss.low_rank`) and 361 of 768 in bfloat16, text in float32, as training gives them;
products are of bfloat16 numbers. Work is counted by hand as docs/scale.md does: eight products a pair, two of them
computed again in the backward pass, of valid units only. Softmaxes, padding and the B x B rest count as nothing, so a
share is of useful products. Rounds of both take turns; medians.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

LEVELS = {"word": (1444, 512, 36, 15), "sentence": (361, 768, 6, 2)}  # regions, width, units: mean and spread
SLOTS = 97
PRODUCTS = 8  # two forward, the same two again, four backward
SEED = 0


def timed(run: Callable[[], object]) -> float:
    import jax

    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def matrix_product(size: int, chain: int) -> tuple[Callable[[], object], float]:
    """A program of `chain` products of two bfloat16 matrices [size, size], and its FLOPs."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(SEED))
    # Columns of `right` have length 1, so that a chain neither grows nor vanishes.
    left, right = (jax.random.normal(key, (size, size), jnp.float32) for key in keys)
    left, right = left.astype(jnp.bfloat16), (right / size**0.5).astype(jnp.bfloat16)

    @jax.jit
    def products(left, right):
        return jax.lax.fori_loop(0, chain, lambda _, x: x @ right, left)

    return lambda: products(left, right), 2.0 * size**3 * chain


def local_loss(row: str, batch: int, regions: int) -> tuple[Callable[[], object], float]:
    """A program of the value and gradients of one level's loss, and its FLOPs counted by hand."""
    import jax
    import jax.numpy as jnp

    from afloc_jax.losses import contrast
    from afloc_jax.losses.settings import LossSettings
    from afloc_jax.losses.tiled import local_similarity

    _, width, mean, spread = LEVELS[row]
    rng = np.random.default_rng(SEED)
    counts = np.clip(rng.normal(mean, spread, batch).astype(int), 1, SLOTS)
    image, text = (
        jnp.asarray(rng.standard_normal(shape, dtype=np.float32), dtype)
        for shape, dtype in (((batch, regions, width), jnp.bfloat16), ((batch, SLOTS, width), jnp.float32))
    )
    text = text * 0.1  # products of features spread like those of a trained model (about 3)
    settings = LossSettings(4.0, 5.0, 10.0)

    @jax.jit
    def value_and_gradients(image, text, counts):
        def total(image, text):
            return sum(contrast(local_similarity(image, text, counts, settings)), start=0.0)

        return jax.value_and_grad(total, (0, 1))(image, text)

    valid = jnp.asarray(counts, jnp.int32)
    flops = 2.0 * PRODUCTS * batch * int(counts.sum()) * regions * width
    return lambda: value_and_gradients(image, text, valid), flops


def measure(arguments: argparse.Namespace) -> dict:
    import jax

    work = {f"product {size}": matrix_product(size, arguments.chain) for size in arguments.size}
    for row, regions in zip(LEVELS, arguments.regions, strict=True):
        if row in arguments.rows:
            work |= {f"{row} {batch}": local_loss(row, batch, regions) for batch in arguments.batch}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    failed: dict[str, str] = {}
    for number in range(arguments.repeats + 1):  # the first compiles
        for name, (run, _) in work.items():
            if name in failed:
                continue
            try:
                taken = timed(run)
            except jax.errors.JaxRuntimeError as error:  # memory, of one size
                failed[name] = str(error).splitlines()[0]
                continue
            seconds[name] += [taken] * (number > 0)
    rates = {
        name: {"seconds": float(np.median(taken)), "tflops": work[name][1] / float(np.median(taken)) / 1e12}
        for name, taken in seconds.items()
        if name not in failed
    }
    best = max(rate["tflops"] for name, rate in rates.items() if name.startswith("product"))
    for rate in rates.values():
        rate["share"] = rate["tflops"] / best
    memory = jax.devices()[0].memory_stats() or {}
    facts = {"device": jax.devices()[0].device_kind, "peak_bytes": memory.get("peak_bytes_in_use")}
    return facts | {"matrix_tflops": best, "rows": rates, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--rows", nargs="+", choices=tuple(LEVELS), default=list(LEVELS))
    parser.add_argument("--regions", type=int, nargs=2, default=[row[0] for row in LEVELS.values()])
    parser.add_argument("--size", type=int, nargs="+", default=[4096, 8192, 16384], help="sides of the square products")
    parser.add_argument("--chain", type=int, default=20, help="products in one program")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    result = measure(arguments)
    print(f"{result['device']}\n| what | median s | TFLOP/s | share of the best product |\n|---|---|---|---|")
    for name, rate in result["rows"].items():
        print(f"| {name} | {rate['seconds']:.4f} | {rate['tflops']:.4g} | {rate['share']:.0%} |")
    for name, why in result["failed"].items():
        print(f"| {name} | {why} | | |")
    if arguments.out:
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "jax": version("jax"), **result}
        arguments.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
