"""`afloc compile`: does this run fit that pod? the training step compiled for it, no accelerator needed."""

import json
from argparse import Namespace
from typing import Any

from afloc_jax.cli.arguments import count, path, setting
from afloc_jax.cli.parser import Parser

EXAMPLE = (
    "afloc compile --config configs/afloc.py --topology v5e:16x16 --global_batch 16384\n\n"
    'TPU topologies need the TPU compiler, pip install "jax[tpu]", and no TPU; cpu:N needs nothing.\n'
    "A v4 chip counts as its two devices. "
    "Exit status 1 where it does not fit.\n\n"
    "largest buffers: arrays of the compiled program by size; they need not all be alive at once."
)


def add(command: Parser) -> None:
    command.add_argument("--config", type=path, required=True, metavar="FILE", help="as for launch.py")
    command.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="v5e:16x16, v6e:16x16, v5p:8x8x8, v4:4x4x4, cpu:8"
    )
    size = command.add_mutually_exclusive_group()
    size.add_argument(
        "--global_batch", type=count, default=0, metavar="B", help="pairs over all chips (default: the config's)"
    )
    size.add_argument(
        "--largest",
        action="store_true",
        help="search for the largest global batch that fits, within a 32nd: one compilation a doubling and up to five "
        "more; not for cpu:N, which has no limit",
    )
    command.add_argument(
        "--set",
        action="append",
        type=setting,
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the config, such as loss.low_rank=true; repeatable",
    )
    command.add_argument(
        "--part",
        choices=("step", "loss"),
        default="step",
        help="the whole step, or the losses and their gradients alone",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(given: Namespace) -> int:
    from afloc_jax.training import ahead_of_time

    ahead_of_time.prepare_platform(given.topology)  # before anything imports JAX
    from afloc_jax.training.config import load, validate

    config = load(given.config, dict(given.set))
    if given.global_batch:
        config.training.batch_size = given.global_batch
    if given.largest:  # any batch that the settings take: that of the config is not asked about
        config.training.batch_size = ahead_of_time.allowed_batches(config, 1)[0]
    validate(config)
    report = (
        ahead_of_time.largest_batch(config, given.topology, part=given.part)
        if given.largest
        else ahead_of_time.compile_step(config, given.topology, part=given.part)
    )
    print(json.dumps(report, indent=2) if given.json else _described(report))
    return 0 if report["fits"] else 1


def _described(report: dict[str, Any]) -> str:
    def gib(key: str) -> str:
        value = report.get(key)
        return "unknown" if value is None else f"{value / 2**30:.2f} GiB"

    limit = "" if report["limit_bytes_per_chip"] is None else f" of {gib('limit_bytes_per_chip')}"
    lines = [
        f"{report['topology']}, {report['chips']} chips, global batch {report['global_batch']}: "
        f"{'fits' if report['fits'] else 'DOES NOT FIT'}, {gib('peak_bytes_per_chip')}{limit} a chip",
        f"arguments {gib('argument_bytes_per_chip')}, temporary {gib('temporary_bytes_per_chip')}",
    ]
    if report["collectives"]:
        lines.append("collectives: " + ", ".join(f"{name} {count}" for name, count in report["collectives"].items()))
    if report["largest_buffers"]:
        lines.append("largest buffers:")
    for kind in report["largest_buffers"][:5]:
        array = f"{kind['dtype']}[{','.join(map(str, kind['shape']))}]"
        places = f"{kind['places']} place{'s' * (kind['places'] > 1)}"
        lines.append(f"  {kind['bytes'] / 2**20:9.2f} MiB  {array}, {places}, from {kind['from'][0]}")
    if report.get("too_large"):
        lines.append(f"the next larger batch tried, {report['too_large']}, does not fit")
    return "\n".join(lines)
