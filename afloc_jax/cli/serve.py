"""`afloc serve`: a page in the browser: drop an image, type a phrase, see the map."""

import argparse
from argparse import Namespace

from afloc_jax.cli.arguments import add_maps, path_or_bucket
from afloc_jax.cli.parser import Parser
from afloc_jax.extras import install

EXAMPLE = (
    "afloc serve runs/demo/model\n"
    "afloc serve runs/a/model runs/b/model     # two models side by side\n\n"
    "Open the address that it prints; Ctrl-C ends it. Images and phrases are neither stored nor logged. By default\n"
    "only this machine can reach the page. --host 0.0.0.0 opens it to the network, for those who have the token in\n"
    "the address. There is no encryption, so the network must be a trusted one.\n"
    f"Needs two more packages: {install('serve')}"
)


def add(command: Parser) -> None:
    command.add_argument("model", type=path_or_bucket, metavar="MODEL", help="model folder")
    command.add_argument(
        "other", type=path_or_bucket, nargs="?", metavar="MODEL2", help="another one, to be compared with the first"
    )
    command.add_argument("--port", type=_port, default=8000, help="port; 0 takes a free one (default: %(default)s)")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    command.add_argument(
        "--token",
        default="",
        help="what every request must bring; others on this machine can see it in the list of processes (default: none "
        "on a loopback address such as 127.0.0.1, else a random one, which is printed with the address)",
    )
    command.add_argument(
        "--time_limit",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="longest time for the computation of one answer (default: %(default)g)",
    )
    add_maps(command)


def run(given: Namespace) -> int:
    from afloc_jax.serve.server import serve

    folders = [given.model, *([given.other] if given.other else [])]
    serve(
        folders,
        given.host,
        given.port,
        token=given.token,
        seconds=given.time_limit,
        maps={"sharpen": given.sharpen or None, "prune": given.prune, "windows": given.windows},
        debug=given.debug,
    )
    return 0


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 65535")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds above 0")
    return value
