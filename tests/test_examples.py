"""The examples in docstrings show what they say; pytest's own collection of them would import every module."""

import ast
import doctest
import importlib

import pytest

from tests.links import ROOT

PACKAGES = ("afloc_jax", "data_pipelines", "configs")
SOURCES = {path: path.read_text() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
FILES = {path: source for path, source in SOURCES.items() if ">>> " in source}


def documented(source):
    """The names and docstrings that hold an example. Read from the source: decorators hide some from doctest."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ">>> " in (ast.get_docstring(node) or ""):
            yield getattr(node, "name", "module"), ast.get_docstring(node)


EXAMPLES = [
    pytest.param(path, docstring, id=f"{path.relative_to(ROOT)}:{name}")
    for path, source in FILES.items()
    for name, docstring in documented(source)
]


@pytest.mark.parametrize(("path", "docstring"), EXAMPLES)
def test_an_example_shows_what_it_says(path, docstring):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    example = doctest.DocTestParser().get_doctest(docstring, vars(module).copy(), module.__name__, str(path), 0)
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


def test_no_example_is_left_out():
    lines = sum(line.lstrip().startswith(">>> ") for source in FILES.values() for line in source.splitlines())
    attempted = sum(len(doctest.DocTestParser().get_examples(param.values[1])) for param in EXAMPLES)
    assert attempted == lines >= 40 and len(EXAMPLES) >= 20
