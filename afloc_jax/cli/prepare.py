"""`afloc prepare`: raw files of a data set to records."""

from argparse import Namespace
from pathlib import Path

from afloc_jax.cli.arguments import (
    add_builder,
    count,
    path,
)
from afloc_jax.cli.overview import print_overview
from afloc_jax.cli.parser import Parser

EXAMPLE = "afloc prepare pairs --raw my_pairs --out data"


def add(command: Parser) -> None:
    command.add_argument("name", metavar="NAME", help="a data set: phantom, pairs, masks, mimic_cxr, ...")
    command.add_argument("--raw", default="", metavar="DIR", help="raw files (phantom needs none)")
    command.add_argument("--out", type=path, required=True, metavar="DIR", help="where records go")
    add_builder(command)
    command.add_argument("--workers", type=count, default=0, metavar="N", help="images decoded at once")
    command.add_argument("--no_overview", action="store_true", help="leave out overview.html, what the records hold")
    command.add_argument(
        "--beam",
        nargs="?",
        const="--runner=DirectRunner",
        metavar="OPTIONS",
        help='build with Apache Beam (requirements-beam.txt); OPTIONS are its own, as in --beam="--runner=..."',
    )


def run(given: Namespace) -> int:
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

        print_overview(page, given.name, *open_folder(page.parent))
    return 0
