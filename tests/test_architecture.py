"""The arrows of docs/architecture.md: which rooms a module may import from."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Tier by tier, from those who use to those who are used. Rooms of one tier do not know one another, but for the last.
TIERS = (
    ("launch", "cli"),
    ("exporters",),
    ("training",),
    ("evaluation", "serve"),
    ("inference",),
    ("weights",),
    ("losses", "models"),
    ("data_pipelines", "levels", "vectors", "interpolation", "provenance", "compiled", "settings", "files", "errors"),
)
TIER = {room: number for number, rooms in enumerate(TIERS) for room in rooms}
LAST = len(TIERS) - 1
MODULES = sorted([*ROOT.glob("afloc_jax/*/**/*.py"), *ROOT.glob("data_pipelines/**/*.py"), ROOT / "launch.py"])


def room_of(module: str) -> str | None:
    """The room of a dotted module name; None: not one of ours, or the package itself."""
    first, *rest = module.split(".")
    if first in ("data_pipelines", "launch"):
        return first
    if first != "afloc_jax" or not rest:
        return None
    return "exporters" if rest[:2] == ["weights", "exporters"] else rest[0]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "afloc_jax"
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if whole else (node.module,)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_imports_point_one_way(path):
    own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own in TIER, f"{path} lies in no room of this test; add it here and to docs/architecture.md"
    for module in imports(path):
        room = room_of(module)
        if room in TIER and room != own:
            assert TIER[own] < TIER[room] or TIER[own] == TIER[room] == LAST, f"{own} imports {module}"
    if own == "data_pipelines":  # knows nothing of models
        assert {room_of(module) for module in imports(path)} <= {None, "data_pipelines", "settings", "files", "errors"}
