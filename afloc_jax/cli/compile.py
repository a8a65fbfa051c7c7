"""`afloc compile`: the training step compiled for a pod, to see whether it fits; no accelerator is needed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from afloc_jax.cli.arguments import count, local, setting
from afloc_jax.cli.parser import Parser
from afloc_jax.training.topology import KINDS

if TYPE_CHECKING:  # importing it would start JAX
    from afloc_jax.training.ahead_of_time import MemoryReport

EXAMPLE = (
    "afloc compile --config afloc --topology v5e:16x16 --global_batch 16384\n\n"
    'TPU topologies need the TPU compiler (pip install "jax[tpu]") but no TPU, those of GPUs the GPU compiler (pip '
    'install "jax[cuda13]") but no GPU; cpu:N needs neither.\n'
    "A v4 chip counts as two devices. h100:8 is one host of eight cards, h100:4x8 four of them. "
    "The exit status is 1 if the run does not fit.\n\n"
    "largest buffers: arrays of the compiled program by size; they need not all exist at once."
)


_CHILD = "AFLOC_COMPILE_CHILD"  # set in the process that compiles


def is_watched() -> bool:
    """Whether another process waits for this one, and tells the user if its compiler dies."""
    return _CHILD in os.environ


def watch(arguments: Sequence[str]) -> int:
    """The command in a process of its own: compilers for other machines may crash, which then is a line.

    What it writes to stderr is shown at its end; of one that crashed only with --debug.
    """
    with tempfile.TemporaryFile() as told:
        command = [sys.executable, "-m", "afloc_jax", *arguments]
        status = subprocess.run(command, env={**os.environ, _CHILD: "1"}, stderr=told).returncode
        told.seek(0)
        if status >= 0 or "--debug" in arguments:
            sys.stderr.write(told.read().decode(errors="replace"))
    if status < 0:
        name = signal.Signals(-status).name
        print(f"afloc: the compiler died of {name}; --debug shows what it wrote, try another setting", file=sys.stderr)
    return status if status >= 0 else 1


def add(command: Parser) -> None:
    command.add_argument("--config", type=local, required=True, metavar="FILE|RECIPE", help="as for afloc train")
    command.add_argument("--topology", required=True, metavar="KIND:SHAPE", help=KINDS)
    size = command.add_mutually_exclusive_group()
    size.add_argument(
        "--global_batch", type=count, default=0, metavar="B", help="pairs on all chips (default: that of the config)"
    )
    size.add_argument(
        "--largest",
        action="store_true",
        help="search for the largest global batch that fits, to a precision of 1/32; compiles once per doubling and up "
        "to five times more; not for cpu:N, which has no limit",
    )
    command.add_argument(
        "--set",
        action="append",
        type=setting,
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the config, such as loss.low_rank=false; repeatable",
    )
    command.add_argument(
        "--part",
        choices=("step", "loss"),
        default="step",
        help="the training step, or only the losses and their gradients",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(given: Namespace) -> int:
    from afloc_jax.training.topology import prepare_platform

    prepare_platform(given.topology)  # must come before JAX is imported
    from afloc_jax.training import ahead_of_time, recipes
    from afloc_jax.training.config import load
    from afloc_jax.training.settings import RunConfig

    recipes.make_importable()
    path, variant = recipes.find_variant(given.config, "config")
    loaded = load(path, dict(given.set), variant)
    if given.global_batch:
        loaded.training.batch_size = given.global_batch
    config = RunConfig.from_config(loaded)
    if given.largest:
        found = ahead_of_time.largest_batch(config, given.topology, given.part)
        report, too_large, content = found.report, found.too_large, found.to_json()
    else:
        report, too_large = ahead_of_time.compile_step(config, given.topology, given.part), None
        content = report.to_json()
    print(json.dumps(content, indent=2) if given.json else _described(report, too_large))
    return 0 if report.fits else 1


def _described(report: "MemoryReport", too_large: int | None) -> str:
    def gib(size: int | None) -> str:
        return "unknown" if size is None else f"{size / 2**30:.2f} GiB"

    limit = "" if report.limit_bytes_per_chip is None else f" of {gib(report.limit_bytes_per_chip)}"
    lines = [
        f"{report.topology}, {report.chips} chips, global batch {report.global_batch}: "
        f"{'fits' if report.fits else 'DOES NOT FIT'}, {gib(report.peak_bytes_per_chip)}{limit} a chip",
        f"arguments {gib(report.argument_bytes_per_chip)}, temporary {gib(report.temporary_bytes_per_chip)}",
    ]
    if report.low_rank:
        lines.append(str(report.low_rank))
    for level, tile in report.tiles.items():
        lines.append(f"{level}s: tiles of {tile.images} images x {tile.units} units")
    if report.launches_per_step is not None:
        units = ", ".join(f"{tile.mean_units} {level}s" for level, tile in report.tiles.items())
        lines.append(
            f"launches a step: {report.launches_per_step:,} kernels, copies and collectives, at {units} a caption"
        )
        lines.append(
            "limit: what JAX takes of a card when it starts; cuDNN's workspaces and NCCL's buffers are not counted"
        )
    if report.collectives:
        lines.append("collectives: " + ", ".join(f"{name} {count}" for name, count in report.collectives.items()))
    if (ring := report.ring_permutes) and ring.total:
        lines.append(
            f"the ring's permutes: {ring.total}, {ring.asynchronous} of them asynchronous, {ring.over_products} with "
            "matrix products between start and done"
        )
    if report.largest_buffers:
        lines.append("largest buffers:")
    for buffer in report.largest_buffers[:5]:
        array = f"{buffer.dtype}[{','.join(map(str, buffer.shape))}]"
        places = f"{buffer.places} place{'s' * (buffer.places > 1)}"
        lines.append(f"  {buffer.bytes / 2**20:9.2f} MiB  {array}, {places}, from {buffer.origins[0]}")
    if too_large:
        lines.append(f"the next larger batch tried, {too_large}, does not fit")
    return "\n".join(lines)
