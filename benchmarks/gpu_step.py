"""Time and memory of the whole training step on a GPU, against the same model in plain PyTorch.

    python -m benchmarks.gpu_step --batch 128 1024 [--sides ours eager compiled] [--rounds 5] [--out step.json]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_step --tiny --batch 8 --rounds 2 --steps 2     a rehearsal without a card

ours      the step of launch.py: value, gradients, clipping, Adam
eager     ResNet, Hugging Face's BERT and the published loss (a loop over captions), autocast to bfloat16, fused Adam
compiled  the same, with torch.compile over both towers and over the loss of a caption

`eager checkpointed` and `compiled checkpointed` keep nothing of a caption's loss and compute it again in the backward
pass, as for a batch that does not fit. With `--set training.remat=blocks` all sides also compute the encoders' blocks
again. Dropout is off on all sides. All sides get the same weights and the same batch, made from a seed, through a file,
and their losses of the first step must agree. Batches lie on the device; a step ends when its loss is read. In each
round every side has a process and the card to itself: two warm-up steps, then `--steps` timed steps, of which the
median is taken. The table has the median and the range over rounds. Memory is the device allocator's peak
(`memory_stats`, `max_memory_allocated`). A side without enough memory is marked in its row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.gpu_sides import REPOSITORY, build_side, configuration, write_weights

SIDES = ("ours", "eager", "compiled", "eager checkpointed", "compiled checkpointed")
WARM_UP = 2
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # allowed of the first loss


def work(arguments: argparse.Namespace) -> None:
    """The worker process: it prints a JSON line with the first loss, the seconds of each timed step and the peak."""
    config = configuration(arguments, arguments.batch[0])
    if arguments.worker == "weights":
        return write_weights(config, arguments.weights)
    began, seconds = time.perf_counter(), []
    side = build_side(config, arguments.weights, arguments.worker)
    side.start()
    first = side.step()
    starting = time.perf_counter() - began
    for number in range(WARM_UP - 1 + arguments.steps):
        began = time.perf_counter()
        side.step()
        seconds += [time.perf_counter() - began] if number >= WARM_UP - 1 else []
    facts = {"first_loss": first, "first_step_seconds": starting, "seconds": seconds}
    print(json.dumps(facts | {"peak_bytes": side.peak(), "device": side.device}))


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
    """The rows of all sides at one batch size. Raises SystemExit if first losses differ, as the models then differ."""
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
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help="change a value of the config"
    )
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
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "set": [list(pair) for pair in arguments.set],
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
        "batches": batches,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
