"""The `afloc` command: each subcommand is a module of this package, a thin layer over one function of the library.

Exit status: 0 done, 1 failed work, 2 a wrong call. Errors are one line on stderr; `--debug` adds the traceback.
A module is imported when its command is called, and imports the library when it runs: --help answers at once.
"""

import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

import afloc_jax
from afloc_jax.cli.parser import Command, Parser
from afloc_jax.compiled import keep_compiled
from afloc_jax.errors import UserError

DESCRIPTION = "Annotation-free pathology localisation: where is this phrase in this image?"

# Command -> what it does. Its module has the same name; that of `import`, a word of Python, ends in "_".
COMMANDS = {
    "localize": "heat maps and boxes for phrases on images",
    "classify": "zero-shot probability of classes in images",
    "retrieve": "the images of a folder that fit a text best, or the texts of a file that fit an image best",
    "serve": "a page in the browser: drop an image, type a phrase, see the map",
    "evaluate": "scores of a model on a data set: localisation beside two baselines, classification, retrieval",
    "score": "scores of any system's heat maps",
    "compare": "two results on the same samples: paired differences, tests, corrections",
    "prepare": "raw files of a data set to records",
    "overview": "what prepared records hold, and whether their splits are clean, as a page",
    "report": "the report page of a run or of an evaluation, written anew from its files",
    "import": "published checkpoints, or pretrained parts, to a model folder",
    "export": "a model folder for other programs",
    "compile": "does this run fit that pod? the training step compiled for it, no accelerator needed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = parser().parse_args(arguments)
    keep_compiled()
    try:
        return int(parsed.run(parsed) or 0)
    except UserError as error:
        return _fail(parsed, str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail(parsed, "interrupted; files written so far are complete", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(parsed, f"{where}{error.strerror or error}", 1)
    except Exception as error:  # a defect of ours: still one line, with the way to the rest
        first = str(error).splitlines()[0] if str(error) else ""
        return _fail(parsed, f"internal error, {type(error).__name__}: {first}; run again with --debug", 1)


def parser() -> Parser:
    """The command line with all commands."""
    top = Parser(prog="afloc", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"afloc_jax {afloc_jax.__version__}")
    commands = top.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND", parser_class=Command
    )
    for name, summary in COMMANDS.items():
        module = f"{__name__}.{name}{'_' * (name == 'import')}"
        commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", module=module)
    return top


def _fail(parsed: Namespace, message: str, status: int) -> int:
    if parsed.debug:
        traceback.print_exc()
    print(f"afloc: {' '.join(message.split())}", file=sys.stderr)
    return status
