"""Arguments that several commands share, and functions that parse and check values."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from afloc_jax.errors import UsageError

if TYPE_CHECKING:
    from afloc_jax.files import Path

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup


def add_model_and_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=path_or_bucket, metavar="MODEL", help="model folder")
    command.add_argument(
        "images",
        type=path,
        nargs="+",
        metavar="IMAGE",
        help="PNG, JPEG, TIFF, BMP or DICOM, 8 or 16 bit; a folder of them; or a pattern in quotes, such as "
        "'a/**/*.dcm'",
    )


def add_builder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--builder",
        action="append",
        type=setting,
        default=[],
        metavar="KEY=VALUE",
        help="argument of the builder, such as test=300; repeatable; each choice of arguments has records of its own",
    )


def add_compatible(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--compatible", action="store_true", help="reproduce the numbers of the published release, with its defects"
    )


def add_strict(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--strict",
        action="store_true",
        help="refuse prompts with words that the model does not know, that are empty after cleaning, or whose end it "
        "does not read (default: they are named on stderr and in the JSON file)",
    )


def add_maps(command: argparse.ArgumentParser) -> None:
    """How maps are made, see `Model.with_maps`."""
    command.add_argument(
        "--sharpen",
        action="store_true",
        help="sharpen maps by a step at mean + 2 standard deviations (docs/localize.md); a model whose config says "
        "so does it anyway",
    )
    command.add_argument(
        "--prune",
        action="store_true",
        help="ask prompts without words that do not say what or where, such as small, mild or unchanged "
        "(docs/localize.md)",
    )
    command.add_argument(
        "--windows",
        type=int,
        default=1,
        metavar="N",
        help="look at N x N overlapping windows of the image, enlarged (N + 1) / 2 times, and join their maps by the "
        "mean: for small findings; 1 to 9 (default: %(default)s, the whole image)",
    )


def add_anew(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--anew",
        action="store_true",
        help="process images again that the same command has done before (default: it goes on where it was stopped, "
        "with images that are new or have changed)",
    )


def path(text: str) -> "Path":
    """The path of a file or folder of this machine on the command line."""
    from afloc_jax.files import user_path  # imported late: etils takes a tenth of a second

    try:
        return user_path(_named(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def local(text: str) -> str:
    """A name on the command line that may be a path of this machine."""
    path(text)
    return text


def path_or_bucket(text: str) -> "Path":
    """The path of a model folder or a working directory on the command line, which may lie in a bucket."""
    from afloc_jax.files import bucket_path

    try:
        return bucket_path(_named(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _named(text: str) -> str:
    """A path that is not empty: "" would be the current folder, and is most often a variable that is not set."""
    if not text:
        raise UsageError("the path is empty; name a file or a folder, or write . for the current one")
    return text


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
        return key, value  # a plain word is a string


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value
