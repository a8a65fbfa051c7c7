"""Commands that make records: prepare."""

import argparse
from pathlib import Path

from afloc_jax.cli.arguments import (
    add_builder,
    add_command,
    count,
)


def add_prepare(commands) -> None:
    command = add_command(
        commands,
        "prepare",
        "raw files of a data set to records",
        "afloc prepare pairs --raw my_pairs --out data",
        _run_prepare,
    )
    command.add_argument("name", metavar="NAME", help="a builder: phantom, pairs, masks, ...")
    command.add_argument("--raw", default="", metavar="DIR", help="raw files (phantom needs none)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where records go")
    add_builder(command)
    command.add_argument("--workers", type=count, default=0, metavar="N", help="processes that decode images")


def _run_prepare(given: argparse.Namespace) -> int:
    from data_pipelines.sources import prepare

    report = prepare(given.name, given.out, raw=given.raw, builder=dict(given.builder), workers=given.workers)
    counts = ", ".join(f"{split} {count}" for split, count in report.get("records", {}).items())
    print(f"{'built' if report['built'] else 'found'} {report['folder']}: {counts}")
    if report.get("rejected"):
        print(f"{len(report['rejected'])} images rejected, named in build_report.json there")
    return 0
