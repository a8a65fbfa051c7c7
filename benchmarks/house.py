"""Measures of the code: loose types, long files, import cycles, docstrings without a subject, long lines of Markdown.

    python -m benchmarks.house [--tree CHECKOUT] [--names]

`Any` and `object` are counted where they occur in types: annotations of arguments, results and variables, type aliases,
casts, and strings within those. A file is long above 400 lines. A cycle is a set of files (or of folders) that all
import each other, directly or indirectly; imports under TYPE_CHECKING and inside functions count. --names lists all
places.
"""

import argparse
import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("afloc_jax", "data_pipelines", "configs", "launch.py")
COUNTED = (*CODE, "tests", "benchmarks", "docs", "deploy", ".ci", ".github", "README.md", "CONTRIBUTING.md")
LONGEST_FILE, LONGEST_LINE = 400, 120
Place = tuple[Path, int]


def python_files(root: Path, tops: tuple[str, ...] = CODE) -> list[Path]:
    found = [path for top in tops for path in ([root / top] if (root / top).is_file() else (root / top).rglob("*.py"))]
    return sorted(path for path in found if path.suffix == ".py" and "__pycache__" not in path.parts)


# Types


def written_types(tree: ast.AST) -> Iterator[ast.expr]:
    """All expressions in places of types; none of them lies within another."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
            if isinstance(node, ast.AnnAssign) and any(_names(node.annotation, "TypeAlias")) and node.value:
                yield node.value
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns
        elif isinstance(node, ast.Call) and _called(node) in ("cast", "TypeVar", "NewType", "NamedTuple"):
            yield from node.args[:1] if _called(node) == "cast" else node.args[1:]
        elif isinstance(node, ast.Assign) and _is_type(node.value):
            yield node.value
        elif isinstance(node, ast.ClassDef):
            yield from (base for base in node.bases if isinstance(base, ast.Subscript))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_type(value: ast.expr) -> bool:
    """Whether an assigned value is an alias: `Any` itself, a union of types, or a subscript such as dict[str, Any]."""
    if isinstance(value, ast.Name):
        return value.id in ("Any", "object")
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        return _is_type(value.left) or _is_type(value.right)
    if not (isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name)):
        return False
    return value.value.id[0].isupper() or value.value.id in ("dict", "list", "tuple", "set", "type")


def _names(expression: ast.expr, name: str) -> Iterator[int]:
    """Lines on which a type names `name`, also within strings such as "dict[str, Any]"."""
    for node in ast.walk(expression):
        if (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name):
            yield node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(rf"\b{name}\b", node.value):
            try:
                inner = ast.parse(node.value, mode="eval").body
            except SyntaxError:  # a shape such as "B H W"
                continue
            yield from (node.lineno for _ in _names(inner, name))


def typed(root: Path, name: str) -> list[Place]:
    """Places in CODE where a type names `name`."""
    found = []
    for path in python_files(root):
        for expression in written_types(ast.parse(path.read_text())):
            found += [(path, line) for line in _names(expression, name)]
    return found


def loose_results(root: Path) -> list[Place]:
    """Functions that return dict[str, Any], a Mapping of such, or either within a larger type."""
    wanted = re.compile(r"\b(dict|Mapping|MutableMapping)\[str, (typing\.)?Any\]")
    return [
        (path, node.lineno)
        for path in python_files(root)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.returns is not None
        and wanted.search(ast.unparse(node.returns).replace("'", ""))
    ]


# Circles


def imports(root: Path) -> dict[str, set[str]]:
    """Modules of CODE -> the modules of CODE that each imports, wherever in the file."""
    names = {_dotted(root, path): path for path in python_files(root)}
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for target in _imported(node, package):
                # `from afloc_jax.errors import UsageError` names a module and something in it.
                module = target if target in names else target.rpartition(".")[0]
                if module in names and module != name:
                    found[name].add(module)
    return found


def _dotted(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{module}.{alias.name}" for alias in node.names)


def within(folder: str, files: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same between what lies directly in a folder: its files, and its folders, each taken as one.

    The folder "" has the rooms: what lies in afloc_jax, and beside it data_pipelines, configs and launch.
    """
    found: dict[str, set[str]] = defaultdict(set)

    def child(module: str) -> str | None:
        if not folder:
            return ".".join(module.split(".")[: 2 if module.startswith("afloc_jax") else 1])
        inside = module.startswith(folder + ".")
        return ".".join(module.split(".")[: folder.count(".") + 2]) if inside else None

    for name, targets in files.items():
        for target in targets:
            ours, theirs = child(name), child(target)
            if ours and theirs and ours != theirs:
                found[ours].add(theirs)
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected sets of more than one (Tarjan, 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in number:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == number[node]:
            end = stack.index(node)
            if len(stack) - end > 1:
                found.append(sorted(stack[end:]))
            del stack[end:]

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def circles_of_files(root: Path) -> list[list[str]]:
    return circles(imports(root))


def circles_of_folders(root: Path) -> list[list[str]]:
    """Circles between the files and folders of each folder that are not yet circles of files."""
    files = imports(root)
    folders = {"", *(_dotted(root, path) for path in python_files(root) if path.name == "__init__.py")} - {"afloc_jax"}
    found = [circle for folder in sorted(folders) for circle in circles(within(folder, files))]
    return [circle for circle in found if circle not in circles(files)]


# English


def without_subject(root: Path) -> list[Place]:
    """Docstrings, comments and help texts that begin with "Of "."""
    found = []
    for path in python_files(root, (*CODE, "benchmarks", "tests")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring and docstring.startswith("Of "):
                    found.append((path, getattr(node, "lineno", 1)))
            elif isinstance(node, ast.keyword) and node.arg in ("help", "description") and _begins_with_of(node.value):
                found.append((path, node.value.lineno))
        before = ""
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                if re.match(r"#\s*[Oo]f ", token.string) and not before:
                    found.append((path, token.start[0]))
                before = token.string if token.line.lstrip().startswith("#") else ""
            elif token.type != tokenize.NL:
                before = ""
    return found


def _begins_with_of(value: ast.expr) -> bool:
    first = value.values[0] if isinstance(value, ast.JoinedStr) and value.values else value
    return isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.lower().startswith("of ")


def long_lines(root: Path) -> list[Place]:
    """Lines of Markdown that are over LONGEST_LINE, rows of tables and blocks of code included."""
    return [
        (path, number)
        for path in markdown(root)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LONGEST_LINE
    ]


def markdown(root: Path) -> list[Path]:
    """The pages of the repository, without those that its tutorials have written into folders beside them."""
    found = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / ".github").rglob("*.md")]
    tutorials = root / "docs/tutorials"
    return sorted(page for page in found if page.parent == tutorials or not page.is_relative_to(tutorials))


# Sizes


def lines_of(root: Path) -> dict[str, int]:
    """Lines of text per top folder or file."""
    counted: Counter[str] = Counter()
    for top in COUNTED:
        whole = root / top
        for path in [whole] if whole.is_file() else sorted(whole.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".png", ".npz", ".pyc"):
                counted[top] += path.read_bytes().count(b"\n")
    return dict(counted)


def long_files(root: Path) -> list[tuple[Path, int]]:
    sizes = [(path, path.read_text().count("\n")) for path in python_files(root, (*CODE, "tests", "benchmarks"))]
    return [(path, size) for path, size in sizes if size > LONGEST_FILE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="CHECKOUT", help="what to measure (default: here)")
    parser.add_argument("--names", action="store_true", help="list the places too")
    given = parser.parse_args()
    root = given.tree.resolve()
    lists = {
        "Any in types": typed(root, "Any"),
        "object in types": typed(root, "object"),
        "functions that return dict[str, Any]": loose_results(root),
        'docstrings, help texts and comments that begin with "Of"': without_subject(root),
        f"Markdown lines over {LONGEST_LINE}": long_lines(root),
        f"files over {LONGEST_FILE} lines": long_files(root),
    }
    for title, places in lists.items():
        print(f"{title}: {len(places)}")
        if given.names:
            print(*(f"    {path.relative_to(root)}:{line}" for path, line in places), sep="\n")
    for title, found in (("files", circles_of_files(root)), ("folders", circles_of_folders(root))):
        print(f"circles of {title}: {len(found)}")
        print(*(f"    {', '.join(circle)}" for circle in found), sep="\n", end="\n" if found else "")
    sizes = lines_of(root)
    print(f"lines: {sum(sizes.values())}")
    print(*(f"    {top:16s} {size:6d}" for top, size in sizes.items()), sep="\n")


if __name__ == "__main__":
    main()
