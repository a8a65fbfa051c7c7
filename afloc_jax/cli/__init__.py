"""The `afloc` command: each subcommand is a thin layer over one function of the library.

Exit status: 0 done, 1 failed work, 2 a wrong call. Errors are one line on stderr; `--debug` adds the traceback.
Heavy modules are imported by the command that needs them, so that --help answers at once.
"""

import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import afloc_jax
from afloc_jax.cli import comparison, data, evaluation, models, scale, serving, weights
from afloc_jax.cli.arguments import Parser
from afloc_jax.compiled import keep_compiled
from afloc_jax.errors import UserError

DESCRIPTION = "Annotation-free pathology localisation: where is this phrase in this image?"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = parser().parse_args(arguments)
    keep_compiled()
    try:
        return int(parsed.run(parsed) or 0)
    except UserError as error:
        return _fail(parsed, str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail(parsed, "interrupted; files written so far are whole", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(parsed, f"{where}{error.strerror or error}", 1)
    except Exception as error:  # a defect of ours: still one line, with the way to the rest
        first = str(error).splitlines()[0] if str(error) else ""
        return _fail(parsed, f"internal error, {type(error).__name__}: {first}; run again with --debug", 1)


def parser() -> ArgumentParser:
    """The whole command line."""
    top = Parser(prog="afloc", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"afloc_jax {afloc_jax.__version__}")
    commands = top.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for add in (
        models.add_localize,
        models.add_classify,
        models.add_retrieve,
        serving.add_serve,
        evaluation.add_evaluate,
        evaluation.add_score,
        comparison.add_compare,
        data.add_prepare,
        data.add_overview,
        evaluation.add_report,
        weights.add_import,
        weights.add_export,
        scale.add_compile,
    ):
        add(commands)
    return top


def _fail(parsed: Namespace, message: str, status: int) -> int:
    if parsed.debug:
        traceback.print_exc()
    print(f"afloc: {' '.join(message.split())}", file=sys.stderr)
    return status
