"""`afloc score`: scores of any system's heat maps."""

from argparse import Namespace

from afloc_jax.cli.arguments import path
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.printing import print_summary
from afloc_jax.cli.settings import given_options, options_of
from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization.settings import LocalizationSettings

_READ = ("title", "bootstrap", "interval", "unit", "compatible", "protocol", "thresholds", "margin", "at", "sharpen")
OPTIONS = options_of(LocalizationSettings, _READ)
FILES = (
    (
        "heatmaps",
        "FILE.npz",
        'keys "<image path><tab><phrase, lower case>", each a map of the padded square or of the original size',
    ),
    ("segmentations", "FILE", "predicted masks (RLE JSON) or points instead of maps; protocol chexlocalize"),
    ("boxes", "FILE", "drawn boxes instead of maps: boxes.csv of localize, or JSON; protocol generalised"),
    ("validation_truth", "FILE", "as --truth: what thresholds of chexlocalize and generalised are chosen on"),
    ("validation_heatmaps", "FILE", "as --heatmaps: what those thresholds are chosen on"),
)
EXAMPLE = "afloc score --truth annotations.json --heatmaps maps.npz --out scores"


def add(command: Parser) -> None:
    command.add_argument(
        "--truth",
        type=path,
        required=True,
        metavar="FILE",
        help="COCO JSON, CheXlocalize's RLE JSON, or a CSV of mask files (image, mask, finding[, prompt, patient])",
    )
    for name, metavar, what in FILES:
        command.add_argument(f"--{name}", type=path, metavar=metavar, help=what)
    command.add_argument(
        "--benchmark",
        type=path,
        action="append",
        default=[],
        metavar="FILE",
        help="masks or points scored on the same samples, such as radiologists'; repeatable; protocol chexlocalize",
    )
    command.add_argument(
        "--images",
        type=path,
        metavar="DIR",
        help="folder of the images named in the truth file; the report draws its examples over them",
    )
    command.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write")
    for option in OPTIONS:
        option.add(command)


def run(given: Namespace) -> int:
    from afloc_jax.evaluation.localization.score_files import score_files
    from afloc_jax.evaluation.page import write_report

    validation = (given.validation_truth, given.validation_heatmaps)
    if (validation[0] is None) != (validation[1] is None):
        raise UsageError("--validation_truth and --validation_heatmaps belong together; give both")
    settings = LocalizationSettings.read(given_options(given, OPTIONS))
    summary = score_files(
        given.truth,
        given.heatmaps,
        given.out,
        settings,
        images=given.images,
        validation=None if validation[0] is None else validation,
        segmentations=given.segmentations,
        benchmarks=given.benchmark,
        boxes=given.boxes,
    )
    print_summary(summary, given.out)
    print(f"report in {write_report(given.out)}")
    return 0
