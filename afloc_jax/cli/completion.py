"""`afloc completion`: a script with which a shell completes commands, flags, recipes and files."""

from argparse import Action, Namespace

from afloc_jax import extras
from afloc_jax.cli.arguments import path, path_or_bucket
from afloc_jax.cli.parser import Parser
from afloc_jax.errors import UsageError

SHELLS = ("bash", "zsh", "tcsh")
EXAMPLE = (
    "afloc completion bash >> ~/.bash_completion\n"
    "  afloc completion zsh > ~/.zfunc/_afloc      (a folder of fpath, before compinit)\n\n"
    f"The script is static: completing starts no Python. Needs {extras.install('completion')}"
)


def add(command: Parser) -> None:
    command.add_argument("shell", choices=SHELLS, help="for which shell")


def run(given: Namespace) -> int:
    if extras.missing("completion"):
        raise UsageError(f"completion needs shtab; run: {extras.install('completion')}")
    import shtab

    from afloc_jax.cli import commands, parser

    top = parser()
    for command in commands(top):
        command.load()
        for action in command._actions:
            _complete(action)
    print(shtab.complete(top, shell=given.shell))
    return 0


def _complete(action: Action) -> None:
    """States what the value of an argument is, where it is a file, a folder, or a recipe."""
    import shtab

    from afloc_jax.training import recipes

    if action.dest in recipes.KINDS and action.choices is None:
        action.choices = [*recipes.names(action.dest), *shtab.Optional.FILE]
    elif action.metavar in ("DIR", "WORKDIR"):
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # shtab's own attribute
    elif action.type in (path, path_or_bucket):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
