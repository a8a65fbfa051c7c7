"""Recipes: the config and sweep files that come with the program, by name ("demo", "levels") or as files."""

import importlib
import importlib.util
import sys

import afloc_jax
from afloc_jax.errors import UsageError
from afloc_jax.files import Path, user_path

_PACKAGE = user_path(afloc_jax.__file__).parent
# In a wheel the recipes are part of the package; in the repository they lie beside it.
INSTALLED = (_PACKAGE / "configs").is_dir()
FOLDER = (_PACKAGE if INSTALLED else _PACKAGE.parent) / "configs"
KINDS = {"config": FOLDER, "sweep": FOLDER / "sweeps"}
_NO_RECIPE = ("__init__", "resolved")


def names(kind: str) -> list[str]:
    """The names of the recipes of a kind of `KINDS`."""
    return sorted(path.stem for path in KINDS[kind].glob("*.py") if path.stem not in _NO_RECIPE)


def find(given: str, kind: str) -> Path:
    """The file of a recipe, or the file that is given by its path.

    A file of the user comes before a recipe of that name. A recipe may be written as in the repository, such as
    configs/demo.py, also where there is no such folder.

    Raises:
        UsageError: there is neither; the message lists the recipes.
    """
    path = user_path(given, f"--{kind}")
    if path.is_file():
        return path
    name = given.removesuffix(".py").removeprefix(f"{FOLDER.name}/").removeprefix("sweeps/" if kind == "sweep" else "")
    if name in names(kind):
        return KINDS[kind] / f"{name}.py"
    raise UsageError(f"--{kind}={given}: no such file, and no recipe of that name; there are {', '.join(names(kind))}")


def find_variant(given: str, kind: str) -> tuple[Path, str]:
    """The file of a recipe, such as that of "demo:quick", and the text after ":" that the file itself reads.

    Raises UsageError as `find` does.

    >>> path, variant = find_variant("demo:quick", "config")
    >>> path.name, variant
    ('demo.py', 'quick')
    """
    name, _, variant = given.partition(":")
    return find(name, kind), variant


def make_importable() -> None:
    """Lets config files of users say `from configs import demo`, as those of the repository do.

    Where a folder of that name can be imported already, it stays what it is.
    """
    if INSTALLED and "configs" not in sys.modules and importlib.util.find_spec("configs") is None:
        sys.modules["configs"] = importlib.import_module(f"{afloc_jax.__name__}.configs")
