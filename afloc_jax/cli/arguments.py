"""The arguments that several commands take, and the types of arguments."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from afloc_jax.errors import UsageError

if TYPE_CHECKING:
    from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
    from afloc_jax.files import Path

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup
PROTOCOL_HELP = "how maps are scored: afloc, chexlocalize or grounding (default: %(default)s)"


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


def add_protocol(command: argparse.ArgumentParser) -> None:
    command.add_argument("--protocol", default="afloc", metavar="NAME", help=PROTOCOL_HELP)


def add_thresholds(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--thresholds",
        type=thresholds,
        metavar="T,T,...",
        help="on the map scaled to [-1, 1], ascending, of afloc and grounding; write --thresholds=-1,-0.5 where the "
        "first is negative (default: 0.1,0.2,0.3,0.4,0.5)",
    )
    command.add_argument(
        "--margin",
        type=count,
        metavar="PIXELS",
        help="border left unscored, of 224 pixels, of afloc and grounding (default: 14 of afloc, 0 of grounding)",
    )


def add_title(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--title",
        default="",
        help="of the data set, for the report; one that begins with RSNA, MS-CXR, COVID Rural or Fundus has the "
        "published numbers beside its own",
    )


def add_compatible(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--compatible", action="store_true", help="reproduce the published release number for number, defects included"
    )


def add_prompt_set(command: Arguments, without: str) -> None:
    """`without`: in words, how classes are asked for when no set is given."""
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
        help="of the square that the model sees: zeros around the whole image, or its middle (default: pad; crop where "
        "classification is compatible, as in the release)",
    )


def add_aggregation(command: Arguments) -> None:
    command.add_argument(
        "--aggregation",
        choices=("mean", "max"),
        default="mean",
        help="how the phrases of a class become one score: their mean (AFLoc) or the largest (GLoRIA) "
        "(default: %(default)s)",
    )


def add_bootstrap(command: Arguments) -> None:
    command.add_argument("--bootstrap", type=count, default=1000, help="resamples (default: %(default)s)")
    command.add_argument(
        "--interval",
        choices=("percentile", "bca"),
        default="percentile",
        help="kind of bootstrap interval (default: %(default)s)",
    )
    command.add_argument(
        "--unit", choices=("sample", "patient"), default="sample", help="what a resample draws (default: %(default)s)"
    )


def bootstrap_of(given: argparse.Namespace) -> "Bootstrap":
    """What `add_bootstrap` asked for."""
    from afloc_jax.evaluation.statistics.bootstrap import Bootstrap

    return Bootstrap(resamples=given.bootstrap, interval=given.interval, unit=given.unit)


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
