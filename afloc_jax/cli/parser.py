"""The parser of all commands: flags with "_" or "-", one-line errors for wrong calls, late imports."""

import argparse
import importlib
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage. Flags may be written with "-" for "_"."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args(underscored(sys.argv[1:] if args is None else args), namespace)


class Command(Parser):
    """A command. Its module is imported, and adds its arguments, when the command is parsed.

    The module defines `EXAMPLE`, `add(command)`, which adds the arguments, and `run(arguments)`, which returns the exit
    status. Where it says `PASSED_ON`, argparse only describes the arguments, and `run` gets all words as `passed_on`.
    """

    def __init__(self, *, module: str, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._module, self._passes_on, self._mixing = module, False, False

    def load(self) -> None:
        """Imports the module of the command, which adds the arguments. A second call does nothing."""
        if self.epilog is None:
            module = importlib.import_module(self._module)
            self.epilog = f"example:\n  {module.EXAMPLE}"
            self.add_argument("--debug", action="store_true", help="show the traceback of an error")
            self.set_defaults(run=module.run)
            module.add(self)
            self._passes_on = getattr(module, "PASSED_ON", False)

    def parse_known_args(self, args=None, namespace=None):
        self.load()
        if self._passes_on and not {"-h", "--help"} & set(args):
            return Namespace(run=self.get_default("run"), debug="--debug" in args, passed_on=list(args)), []
        if self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True  # argparse calls this method for its two passes: flags, then what stands between them
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def underscored(arguments: Iterable[str]) -> list[str]:
    """The arguments with "_" for "-" in the names of flags.

    Values after "=", arguments after "--", and keys of a config (--config.KEY) are kept.
    """
    spelled: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and not name.startswith("--config") and "--" not in spelled:
            argument = "--" + name[2:].replace("-", "_") + equals + value
        spelled.append(argument)
    return spelled
