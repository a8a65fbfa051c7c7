"""Commands about data: prepare makes records, overview says what they hold."""

import argparse
from pathlib import Path
from typing import Any

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
    command.add_argument("name", metavar="NAME", help="a data set: phantom, pairs, masks, mimic_cxr, ...")
    command.add_argument("--raw", default="", metavar="DIR", help="raw files (phantom needs none)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where records go")
    add_builder(command)
    command.add_argument("--workers", type=count, default=0, metavar="N", help="images decoded at once")
    command.add_argument("--no-overview", action="store_true", help="leave out overview.html, what the records hold")
    command.add_argument(
        "--beam",
        nargs="?",
        const="--runner=DirectRunner",
        metavar="OPTIONS",
        help='build with Apache Beam (requirements-beam.txt); OPTIONS are its own, as in --beam="--runner=..."',
    )


def _run_prepare(given: argparse.Namespace) -> int:
    from data_pipelines.prepared import prepare

    builder = dict(given.builder)
    report = prepare(given.name, given.out, raw=given.raw, builder=builder, workers=given.workers, beam=given.beam)
    counts = ", ".join(f"{split} {count}" for split, count in report.get("records", {}).items())
    print(f"{'built' if report['built'] else 'found'} {report['folder']}: {counts}")
    if report.get("dropped"):
        print("left out: " + ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items()))
    if report.get("rejected"):
        print(f"{len(report['rejected'])} images rejected, named in build_report.json there")
    page = Path(report["folder"]) / "overview.html"
    if not (given.no_overview or page.is_file()):
        from data_pipelines.prepared import open_folder

        _write_overview(page, given.name, *open_folder(page.parent))
    return 0


def add_overview(commands) -> None:
    command = add_command(
        commands,
        "overview",
        "what prepared records hold, and whether their splits are clean, as a page",
        "afloc overview open_i --data data --out open_i.html",
        _run_overview,
    )
    command.add_argument("name", metavar="NAME", help="a prepared data set")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="where its records are")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the HTML page")
    add_builder(command)


def _run_overview(given: argparse.Namespace) -> int:
    from data_pipelines.prepared import open_prepared

    _write_overview(given.out, given.name, *open_prepared(given.name, given.data, dict(given.builder)))
    return 0


def _write_overview(page: Path, name: str, sources: dict[str, Any], account: dict[str, Any]) -> None:
    from data_pipelines.overview import write_overview

    overview = write_overview(page, name, sources, account)
    counts = ", ".join(f"{split} {count}" for split, count in overview.records.items())
    texts = sum(overview.texts_across.values())
    shared = f"; {texts} long reports have a near-identical one in another split" if texts else ""
    print(f"{page}: {counts}; {'LEAKS between splits' if overview.leaks else 'no leak between splits'}{shared}")
