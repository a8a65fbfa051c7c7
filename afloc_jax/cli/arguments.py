"""The arguments that several commands take, and the types of arguments."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from afloc_jax.errors import UsageError

if TYPE_CHECKING:
    from afloc_jax.files import Path

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup


def add_model_and_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=path, metavar="MODEL", help="model folder")
    command.add_argument("images", type=path, nargs="+", metavar="IMAGE", help="PNG, JPEG or DICOM, 8 or 16 bit")


def add_builder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--builder",
        action="append",
        type=setting,
        default=[],
        metavar="KEY=VALUE",
        help="argument of the builder, such as test=300; repeatable; other arguments are other records",
    )


def add_compatible(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--compatible", action="store_true", help="reproduce the published release number for number, defects included"
    )


def add_prompt_set(command: Arguments, without: str) -> None:
    """`without`: in words, which prompts stand for a class when no set is given."""
    command.add_argument("--class", action="append", dest="classes", metavar="NAME", help="a class; repeatable")
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help="phrases of each class: a JSON file (docs/classification.md) or the name of a built-in set such as chest; "
        f"without it: {without}",
    )


def add_framing(command: Arguments) -> None:
    command.add_argument(
        "--framing",
        choices=("pad", "crop"),
        help="how an image becomes the square that the model sees: pad surrounds it with zeros, crop takes its middle "
        "(default: pad; crop where classification is compatible, as in the release)",
    )


def add_aggregation(command: Arguments) -> None:
    command.add_argument(
        "--aggregation",
        choices=("mean", "max"),
        default="mean",
        help="how the phrases of a class become one score: their mean (AFLoc) or the largest (GLoRIA) "
        "(default: %(default)s)",
    )


def path(text: str) -> "Path":
    """A file or folder of the user's."""
    from afloc_jax.files import user_path  # etils takes a tenth of a second, which --help has not

    try:
        return user_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def thresholds(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def threshold(text: str) -> float:
    value = float(text)
    if not -1 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must lie between -1 and 1")
    return value


def setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value  # a plain word is text


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value
