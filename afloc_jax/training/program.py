"""How this process was started: by launch.py, or by a command of `afloc`. Messages name it, and runs start like it."""

import sys
from collections.abc import Sequence

_name = "launch.py"
_command: Sequence[str] = (sys.executable, "launch.py")


def started_as(name: str, *command: str) -> None:
    """States the name, and the command without flags that starts a run in a process of its own."""
    global _name, _command
    _name, _command = name, command


def name() -> str:
    """What messages begin with, such as "launch.py"."""
    return _name


def command() -> Sequence[str]:
    """The words before the flags of a run in a process of its own."""
    return _command
