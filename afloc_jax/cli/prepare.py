"""`afloc prepare`: records from the raw files of a data set."""

from argparse import Namespace

from afloc_jax.cli.arguments import add_builder, count, path
from afloc_jax.cli.overview import print_overview
from afloc_jax.cli.parser import Parser
from afloc_jax.extras import install

EXAMPLE = "afloc prepare pairs --raw my_pairs --out data"


def add(command: Parser) -> None:
    command.add_argument("name", metavar="NAME", help="a data set: phantom, pairs, masks, mimic_cxr, ...")
    command.add_argument("--raw", type=path, metavar="DIR", help="raw files (phantom needs none)")
    command.add_argument("--out", type=path, required=True, metavar="DIR", help="folder of prepared records")
    add_builder(command)
    command.add_argument(
        "--exclude",
        action="append",
        type=path,
        default=[],
        metavar="FILE",
        help="patients to leave out: one a line, or a CSV file with a column of patients; repeatable",
    )
    command.add_argument(
        "--pseudonym_key",
        type=path,
        metavar="FILE",
        help="key of the pseudonyms of patients (default: one that is made once in --out, .pseudonym_key)",
    )
    command.add_argument(
        "--workers",
        type=count,
        default=0,
        metavar="N",
        help="images decoded at once (default: the builder's choice)",
    )
    command.add_argument(
        "--wait",
        action="store_true",
        help="wait where another process builds records in --out (default: say which, and end with status 2)",
    )
    command.add_argument("--no_overview", action="store_true", help="do not write overview.html about the records")
    command.add_argument(
        "--beam",
        nargs="?",
        const="--runner=DirectRunner",
        metavar="OPTIONS",
        help=f"build with Apache Beam ({install('beam')}, in an environment of its own); OPTIONS are those of Beam, as "
        'in --beam="--runner=..."',
    )


def run(given: Namespace) -> int:
    from data_pipelines.prepared import prepare

    builder = dict(given.builder)
    if given.exclude:
        builder["exclude"] = [str(file) for file in given.exclude]
    if given.pseudonym_key:
        builder["pseudonym_key"] = str(given.pseudonym_key)
    how = {"workers": given.workers, "beam": given.beam, "waits": given.wait}
    prepared = prepare(given.name, given.out, raw=given.raw or "", builder=builder, **how)
    report = prepared.report
    counts = ", ".join(f"{split} {count}" for split, count in report.records.items())
    print(f"{'built' if prepared.built else 'found'} {prepared.folder}: {counts}")
    if report.dropped:
        print("left out: " + ", ".join(f"{reason} {count}" for reason, count in report.dropped.items()))
    if report.rejected:
        print(f"{len(report.rejected)} images rejected, named in build_report.json there")
    if report.boxes_outside:
        boxes, images = sum(report.boxes_outside.values()), len(report.boxes_outside)
        print(f"{boxes} boxes of {images} images reach beyond them and were cut, named in build_report.json there")
    if report.flat:
        black = f" ({len(report.black)} of them black)" if report.black else ""
        print(f"{len(report.flat)} images have one grey value in all pixels{black}, named in build_report.json there")
    for note in report.notes:
        print(note)
    page = prepared.folder / "overview.html"
    if not (given.no_overview or page.is_file()):
        print_overview(page, given.name, prepared)
    return 0
