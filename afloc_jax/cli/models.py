"""Commands that use a model: localize, classify, retrieve."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from afloc_jax.cli.arguments import (
    add_aggregation,
    add_command,
    add_compatible,
    add_framing,
    add_model_and_images,
    add_prompt_set,
    count,
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
    add_prompt_set(command, '"Findings suggesting <class>."')
    add_framing(command)
    add_aggregation(command)
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE.csv", help="one row per image; FILE.json beside it says how"
    )
    add_compatible(command)


def add_retrieve(commands) -> None:
    command = add_command(
        commands,
        "retrieve",
        "the images of a folder that fit a text best, or the texts of a file that fit an image best",
        'afloc retrieve runs/demo/model --images chests --query "small left pleural effusion" --top 5\n'
        "  afloc retrieve runs/demo/model --images chests --texts phrases.txt",
        _run_retrieve,
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images, or one image")
    command.add_argument(
        "--query", action="append", default=[], metavar="TEXT", help="find images for this text; repeatable"
    )
    command.add_argument("--texts", type=Path, metavar="FILE", help="find texts, one a line, for every image")
    command.add_argument("--top", type=count, default=5, metavar="K", help="how many (default: %(default)s)")
    command.add_argument("--out", type=Path, metavar="FILE.csv", help="write the answers as a table, too")
    add_compatible(command)


def _run_retrieve(given: argparse.Namespace) -> int:
    from afloc_jax.inference.retrieve import retrieve_files

    answers, failed = retrieve_files(
        given.model, given.images, given.query, given.texts, given.top, given.out, given.compatible
    )
    for answer in answers:
        if answer.rank == 1:
            print(answer.query)
        print(f"  {answer.rank:3d}  {answer.similarity:6.3f}  {answer.found}")
    if failed:
        print(f"afloc: {len(failed)} images could not be read and were left out", file=sys.stderr)
    return 1 if failed else 0


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
        given.model,
        given.images,
        given.classes,
        given.out,
        prompts=given.prompts,
        compatible=given.compatible,
        framing=given.framing,
        aggregation=given.aggregation,
    )
    return _finish(done, failed, given.out)


def _finish(done: int, failed: Sequence[str], out: Path) -> int:
    if not failed:
        print(f"{done} image{'s' if done != 1 else ''} done, results in {out}")
        return 0
    print(f"afloc: {len(failed)} of {done + len(failed)} images failed, the others are in {out}", file=sys.stderr)
    return 1
