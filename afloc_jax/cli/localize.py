"""`afloc localize`: heat maps and boxes for phrases on images."""

from argparse import Namespace

from afloc_jax.cli.arguments import add_compatible, add_model_and_images, add_strict, path, threshold
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.printing import finish_images

EXAMPLE = (
    'afloc localize runs/demo/model chest.png --prompt "small left pleural effusion" --out out\n\n'
    "For image a.png and prompt k (from 0), writes a.k.heatmap.npy (float32, un-normalised similarity),\n"
    "a.k.overlay.png, and one localize.json with boxes (x, y, width, height in original pixels). Results of\n"
    "images of the same name begin with the names of their folders."
)


def add(command: Parser) -> None:
    add_model_and_images(command)
    command.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="a phrase; repeatable")
    command.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write")
    command.add_argument(
        "--threshold",
        type=threshold,
        default=0.3,
        help="boxes enclose the values above it on the map, scaled to [-1, 1] by its own minimum and maximum "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--map",
        choices=("original", "square"),
        default="original",
        help="write maps at the original size of the image, or of the zero-padded square, as the published release",
    )
    add_compatible(command)
    add_strict(command)


def run(given: Namespace) -> int:
    from afloc_jax.inference.files import localize_files

    done, failed = localize_files(
        given.model,
        given.images,
        given.prompt,
        given.out,
        threshold=given.threshold,
        square=given.map == "square",
        compatible=given.compatible,
        strict=given.strict,
    )
    return finish_images(done, failed, given.out)
