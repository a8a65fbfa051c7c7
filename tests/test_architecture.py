"""The arrows of docs/architecture.md: which rooms a module may import from."""

import ast
import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import house

ROOT = Path(__file__).resolve().parents[1]

# Tier by tier, from those who use to those who are used. Rooms of one tier do not know one another, but for the last.
TIERS = (
    ("launch",),
    ("cli",),
    ("places",),
    ("training",),
    ("evaluation", "serve", "export"),
    ("inference",),
    ("weights",),
    ("losses", "models"),
    (
        "data_pipelines",
        "levels",
        "vectors",
        "interpolation",
        "heatmaps",
        "provenance",
        "compiled",
        "settings",
        "files",
        "tables",
        "seals",
        "ownership",
        "claims",
        "buckets",
        "errors",
        "extras",
        "installation",
    ),
)
TIER = {room: number for number, rooms in enumerate(TIERS) for room in rooms}
LAST = len(TIERS) - 1
MODULES = sorted([*ROOT.glob("afloc_jax/*/**/*.py"), *ROOT.glob("data_pipelines/**/*.py"), ROOT / "launch.py"])


def room_of(module: str) -> str | None:
    """The room of a dotted module name; None: not one of ours, or the package itself."""
    first, *rest = module.split(".")
    if first in ("data_pipelines", "launch"):
        return first
    return rest[0] if first == "afloc_jax" and rest else None


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
        allowed = {None, "data_pipelines", "settings", "files", "tables", "buckets", "ownership", "errors", "extras"}
        assert {room_of(module) for module in imports(path)} <= allowed


# What is left to undo; nothing may be added.
CIRCLES_LEFT: tuple[list[str], ...] = ()
MOST_ANY = 75  # as types, in afloc_jax, data_pipelines, configs and launch.py; lower it as it falls


def test_no_files_and_no_folders_import_in_a_circle():
    found = [*house.circles_of_files(ROOT), *house.circles_of_folders(ROOT)]
    assert [circle for circle in found if circle not in CIRCLES_LEFT] == []


def test_types_say_any_no_more_often_than_they_did():
    assert len(house.typed(ROOT, "Any")) <= MOST_ANY


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a: Any, *b: list[Any]) -> dict[str, Any]: ...", 3),
        ("a: 'dict[str, Any]' = cast('Any', b)", 2),
        ("Row = dict[str, Any]\nPair = Any | None\nvalue = Any\n", 3),
        ("class A(Base[Any]):\n    a: typing.Any", 2),
        ("from typing import Any\nprint(Any, 'Any')\ntable[Any]\n", 0),
        ("def f(a: Float[Array, 'B Any']): ...", 0),
    ],
)
def test_any_is_counted_where_types_are_written(source, count, tmp_path):
    (tmp_path / "launch.py").write_text(source)
    assert len(house.typed(tmp_path, "Any")) == count


def test_circles_are_found_between_files_and_between_folders(tmp_path):
    texts = {
        "a/__init__.py": "",
        "a/one.py": "from afloc_jax.b import two",
        "a/more.py": "if TYPE_CHECKING:\n    from .many import c",
        "a/many.py": "def late():\n    from afloc_jax.a.more import d",
        "b/__init__.py": "",
        "b/two.py": "",
        "b/three.py": "import afloc_jax.a.four",
        "a/four.py": "",
    }
    for name, text in texts.items():
        path = tmp_path / "afloc_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "launch.py").write_text("")
    assert house.circles_of_files(tmp_path) == [["afloc_jax.a.many", "afloc_jax.a.more"]]
    assert house.circles_of_folders(tmp_path) == [["afloc_jax.a", "afloc_jax.b"]]


def undefined(path: Path) -> set[str]:
    """Names that the functions of a file read and nobody defines.

    ruff (F821) and mypy (name-defined) take the names of dimensions in jaxtyping's strings for undefined names, so
    both checks are off; symbol tables know code alone, and no strings.
    """
    top = symtable.symtable(path.read_text(), str(path), "exec")
    defined = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    defined |= {table.get_name() for table in top.get_children()} | set(dir(builtins))
    defined |= {"__file__", "__name__", "__doc__"}
    found, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        if table is not top and table.get_name() == "top":
            continue  # symtable takes a function of this name for the module
        names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global()}
        found |= names - defined
    return found


def test_every_name_that_code_reads_is_defined(tmp_path):
    files = [*MODULES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("configs/**/*.py")]
    assert {str(path): names for path in files if (names := undefined(path))} == {}
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f(a: Float['B H']):\n    return [numpy.sum(x) for x in a]\n")
    assert undefined(wrong) == {"numpy", "Float"}
