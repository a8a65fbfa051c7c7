"""Commands that use a model: localize, classify."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from afloc_jax.cli.arguments import (
    add_command,
    add_compatible,
    add_model_and_images,
    threshold,
)


def add_localize(commands) -> None:
    command = add_command(
        commands,
        "localize",
        "heat maps and boxes for phrases on images",
        'afloc localize runs/demo/model chest.png --prompt "small left pleural effusion" --out out\n\n'
        "For image a.png and prompt k (from 0), writes a.k.heatmap.npy (float32, un-normalised similarity),\n"
        "a.k.overlay.png, and one localize.json with boxes (x, y, width, height in original pixels). Images of the\n"
        "same name are told apart by their folders.",
        _run_localize,
    )
    add_model_and_images(command)
    command.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="a phrase; repeatable")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    command.add_argument(
        "--threshold",
        type=threshold,
        default=0.3,
        help="of boxes, on the map scaled to [-1, 1] by its minimum and maximum (default: %(default)s)",
    )
    command.add_argument(
        "--map",
        choices=("original", "square"),
        default="original",
        help="map at the image's own size, or of the zero-padded square as the published release has it",
    )
    add_compatible(command)


def add_classify(commands) -> None:
    command = add_command(
        commands,
        "classify",
        "zero-shot probability of classes in images",
        "afloc classify runs/demo/model chest.png --class pneumonia --class edema --out scores.csv",
        _run_classify,
    )
    add_model_and_images(command)
    command.add_argument("--class", action="append", dest="classes", metavar="NAME", help="a finding; repeatable")
    command.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON: class -> phrases, or {positive, negative}, or word lists {severity, subtype, location}",
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="one row per image")
    add_compatible(command)


def _run_localize(given: argparse.Namespace) -> int:
    from afloc_jax.inference.files import localize_files

    done, failed = localize_files(
        given.model,
        given.images,
        given.prompt,
        given.out,
        threshold=given.threshold,
        square=given.map == "square",
        compatible=given.compatible,
    )
    return _finish(done, failed, given.out)


def _run_classify(given: argparse.Namespace) -> int:
    from afloc_jax.inference.files import classify_files

    done, failed = classify_files(
        given.model, given.images, given.classes, given.out, prompts=given.prompts, compatible=given.compatible
    )
    return _finish(done, failed, given.out)


def _finish(done: int, failed: Sequence[str], out: Path) -> int:
    if not failed:
        print(f"{done} image{'s' if done != 1 else ''} done, results in {out}")
        return 0
    print(f"afloc: {len(failed)} of {done + len(failed)} images failed, the others are in {out}", file=sys.stderr)
    return 1
