"""The `afloc` command. Each subcommand is a module of this package, a thin layer over one function of the library.

The exit status is 0 for success, 1 for failed work and 2 for a wrong call. Errors are one line on stderr; `--debug`
adds the traceback. A module is imported when its command is called, and imports the library when it runs, so that
--help is fast.
"""

import sys
import traceback
from argparse import Namespace, _SubParsersAction
from collections.abc import Sequence

import afloc_jax
from afloc_jax.cli.parser import Command, Parser
from afloc_jax.compiled import keep_compiled
from afloc_jax.errors import UserError

DESCRIPTION = "Annotation-free pathology localisation: where is this phrase in this image?"

# Command -> summary. Its module has the same name; that of `import`, a keyword of Python, ends in "_".
COMMANDS = {
    "train": "a model from images and reports; the same command goes on with a run that was stopped",
    "sweep": "a training run for each of several settings, and a table of their results",
    "localize": "heat maps and boxes for phrases on images",
    "classify": "zero-shot probability of classes in images",
    "retrieve": "the images of a folder that fit a text best, or the texts of a file that fit an image best",
    "serve": "a page in the browser: drop an image, type a phrase, see the map",
    "evaluate": "scores of a model on a data set: localisation, classification, retrieval, robustness, counterfactuals",
    "calibrate": "the probability that a prompt is present, fitted on validation data",
    "score": "scores of any system's heat maps",
    "compare": "two results on the same samples: paired differences, tests, corrections",
    "prepare": "records from the raw files of a data set",
    "overview": "a page about prepared records: their contents, and leaks between their splits",
    "report": "the report page of a run or of an evaluation, written again from its files",
    "import": "a model folder from published checkpoints or pretrained parts",
    "export": "a model folder in a format of other programs",
    "verify": "whether a model or a working directory is as it was saved, by SHA-256",
    "doctor": "versions, devices and extras of this installation, and what keeps JAX from a card that is there",
    "completion": "a script with which a shell completes commands, flags, recipes and files",
    "render": "the commands with which a run or a sweep is started: on a laptop, GPUs, Slurm, Cloud TPU, GKE",
    "compile": "whether a training run fits the memory of a pod, without an accelerator",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    Args:
        arguments: the command line without the program; None is that of this process.
    """
    parsed = parser().parse_args(arguments)
    if arguments is None and parsed.command == "compile":
        from afloc_jax.cli import compile as compiling

        if not compiling.is_watched():
            return compiling.watch(sys.argv[1:])
    keep_compiled()
    try:
        status = int(parsed.run(parsed) or 0)
    except UserError as error:
        return _fail(parsed, str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail(parsed, "interrupted; files written so far are complete", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(parsed, f"{where}{error.strerror or error}", 1)
    except Exception as error:  # a defect is one line as well; --debug shows the traceback
        first = str(error).splitlines()[0] if str(error) else ""
        return _fail(parsed, f"internal error, {type(error).__name__}: {first}; run again with --debug", 1)
    if arguments is None and status > 128:  # a signal stopped a run of training, of which a thread may still compile
        from afloc_jax.training.leaving import end

        end(status)
    return status


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


def commands(top: Parser) -> list[Command]:
    """The parsers of all commands."""
    (action,) = (action for action in top._actions if isinstance(action, _SubParsersAction))
    return list(action.choices.values())


def _fail(parsed: Namespace, message: str, status: int) -> int:
    if parsed.debug:
        traceback.print_exc()
    print(f"afloc: {' '.join(message.split())}", file=sys.stderr)
    return status
