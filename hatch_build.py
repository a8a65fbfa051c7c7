"""What the wheel holds: `afloc_jax` alone, with data_pipelines and configs inside it.

In the repository these two lie beside afloc_jax and are imported by their own names. In the wheel their names would be
in the way of other packages, so that they are `afloc_jax.data_pipelines` and `afloc_jax.configs`, and the lines that
import them say so. Lines keep their numbers. Whatever else would need the old names ends the build.

An editable installation (`pip install -e .`) is the repository as it is.
"""

import ast
import re
import shutil
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE, INSIDE = "afloc_jax", ("data_pipelines", "configs")
_NAMES = "|".join(INSIDE)
_EXAMPLE = re.compile(rf"^(\s*>>> from )(?=(?:{_NAMES})[. ])", re.MULTILINE)
_DOTTED = re.compile(rf"(?:{_NAMES})(?:\.[a-z_]*)+")


def rewritten(source: str, name: str) -> str:
    """The text of a Python file as the wheel has it.

    Raises SyntaxError for a use of the old names that is not `from ... import ...`.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in INSIDE:
            line, start = lines[node.lineno - 1], node.col_offset
            lines[node.lineno - 1] = line[:start] + line[start:].replace("from ", f"from {PACKAGE}.", 1)
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] in INSIDE for alias in node.names):
            raise SyntaxError(f"{name}:{node.lineno}: write it as `from ... import ...`, which the wheel can rename")
        elif isinstance(node, ast.Constant) and _DOTTED.fullmatch(str(node.value)):
            raise SyntaxError(f"{name}:{node.lineno}: {node.value!r} has another name in the wheel; use __package__")
    return _EXAMPLE.sub(rf"\1{PACKAGE}.", "".join(lines))


def gather(root: Path, target: Path, version: str) -> None:
    """Writes the package into the empty folder `target`."""
    for name in (PACKAGE, *INSIDE):
        place = target if name == PACKAGE else target / name
        shutil.copytree(root / name, place, ignore=shutil.ignore_patterns("__pycache__", ".*"), dirs_exist_ok=True)
    shutil.copy(root / "LICENSE", target)  # which exports carry
    for path in target.rglob("*.py"):
        path.write_text(rewritten(path.read_text("utf-8"), str(path.relative_to(target))), "utf-8")
    (target / "_version.py").write_text(f'"""Written by the build."""\n\nversion = "{version}"\n')


class WheelHook(BuildHookInterface):
    """Hatchling's hook, called before and after a wheel is built."""

    def initialize(self, version: str, build_data: dict) -> None:
        if version == "editable":
            return
        self.scratch = tempfile.mkdtemp()
        gather(Path(self.root), Path(self.scratch), self.metadata.version)
        build_data["force_include"][self.scratch] = PACKAGE

    def finalize(self, version: str, build_data: dict, artifact_path: str) -> None:
        if version != "editable":
            shutil.rmtree(self.scratch)
