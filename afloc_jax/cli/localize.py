"""`afloc localize`: heat maps and boxes for phrases on images."""

from argparse import Namespace

from afloc_jax.cli.arguments import (
    add_anew,
    add_compatible,
    add_maps,
    add_model_and_images,
    add_strict,
    path,
    threshold,
)
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.printing import finish_images

EXAMPLE = (
    'afloc localize runs/demo/model chest.png --prompt "small left pleural effusion" --out out\n'
    '  afloc localize runs/demo/model chests "more/**/*.dcm" --prompt effusion --prompt nodule --out out\n\n'
    "Writes boxes.csv and localize.json: boxes (x, y, width, height in original pixels) and scores. For image\n"
    "a.png that is named singly, and prompt k (from 0), also a.k.heatmap.npy (float32, un-normalised similarity)\n"
    "and a.k.overlay.png at its size. For images of folders and patterns, which may be thousands, a.k.overlay.png of\n"
    "at most 1,024 pixels; --maps and --overlays choose otherwise. Results of images of the same name begin with the\n"
    "names of their folders. The same command goes on where it was stopped (docs/localize.md)."
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
    command.add_argument(
        "--maps",
        choices=("npy", "npz", "png16", "none"),
        help="files of maps: float32 as it is or compressed, or 16 bits with their range in localize.json (default: "
        "npy for images named singly, else none)",
    )
    command.add_argument(
        "--overlays",
        choices=("original", "small", "none"),
        help="size of overlays: the image's, or at most 1,024 pixels (default: original for images named singly, else "
        "small)",
    )
    add_maps(command)
    command.add_argument(
        "--uids",
        action="store_true",
        help="write the SOP instance UIDs of DICOM files, which identify images, to boxes.csv and localize.json",
    )
    command.add_argument(
        "--dicom",
        choices=("segmentation", "capture", "both"),
        help="of each DICOM image also write NAME.seg.dcm, a segmentation with a segment per prompt, or "
        "NAME.k.capture.dcm, a secondary capture of each overlay. They carry the patient and study modules of the "
        "image (name, identifier, birth date, study date and so on); no other file does. Needs highdicom",
    )
    command.add_argument(
        "--no_identity",
        action="store_true",
        help="with --dicom: these modules stay empty, all identifiers are new, and nothing refers to the image. "
        "What is burnt into its pixels stays",
    )
    add_compatible(command)
    add_strict(command)
    add_anew(command)


def run(given: Namespace) -> int:
    from afloc_jax.inference.files import localize_files
    from afloc_jax.inference.outputs import Outputs

    done = localize_files(
        given.model,
        given.images,
        given.prompt,
        given.out,
        threshold=given.threshold,
        outputs=Outputs(
            given.maps, given.overlays, given.map == "square", given.uids, given.dicom, not given.no_identity
        ),
        compatible=given.compatible,
        strict=given.strict,
        anew=given.anew,
        sharpen=given.sharpen or None,
        prune=given.prune,
        windows=given.windows,
    )
    return finish_images(done.now, done.before, done.failed, given.out)
