"""The examples in docstrings show what they say; pytest's own collection of them would import every module."""

import ast
import doctest
import functools
import importlib
import inspect
import re

import cv2
import numpy as np
import pytest

import afloc_jax
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)
from tests.links import ROOT
from tests.weights.test_hub import hub  # noqa: F401 (a fixture)

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


@pytest.fixture(scope="module")
def shown(folder, model, tmp_path_factory):  # noqa: F811
    """What examples of a model in use may name; a tiny model with random weights stands for a trained one."""
    chest = np.random.default_rng(0).integers(0, 256, (97, 131), dtype=np.uint8)
    place = tmp_path_factory.mktemp("films")
    cv2.imwrite(str(place / "chest.png"), chest)
    found = model.localize([chest], ["Small left effusion"])[0][0]
    return place, {"folder": folder, "model": model, "chest": chest, "found": found}


@pytest.mark.parametrize(("path", "docstring"), EXAMPLES)
def test_an_example_shows_what_it_says(path, docstring, request, monkeypatch):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    names = vars(module).copy()
    if re.search(r">>> .*\b(model\.|folder\b|chest\b|found\.)", docstring):
        place, more = request.getfixturevalue("shown")
        if "owner/model" in docstring:
            request.getfixturevalue("hub")
        monkeypatch.chdir(place)
        names = {**more, **names}
    example = doctest.DocTestParser().get_doctest(docstring, names, module.__name__, str(path), 0)
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


def public(name, thing):
    """A public function or class with its public methods and properties, as pairs of a name and a docstring."""
    yield name, inspect.getdoc(thing) or ""
    for kind in inspect.getmro(thing) if isinstance(thing, type) else ():
        for own, member in vars(kind).items() if kind.__module__.startswith("afloc_jax.") else ():
            callable_ = isinstance(member, property | classmethod | staticmethod | functools.cached_property)
            if not own.startswith("_") and (callable_ or inspect.isfunction(member)):
                yield f"{name}.{own}", inspect.getdoc(member) or ""


@pytest.mark.parametrize("name", afloc_jax.__all__)
def test_every_public_function_has_an_example(name):
    assert [own for own, docstring in public(name, getattr(afloc_jax, name)) if ">>> " not in docstring] == []
    assert name in dir(afloc_jax)


def test_a_function_without_an_example_is_found():
    class Kind:
        """>>> 1"""

        def shown(self):
            """>>> 1"""

        @property
        def bare(self):
            """Nothing."""

        def _own(self): ...

    Kind.__module__ = "afloc_jax.a"
    assert [own for own, docstring in public("Kind", Kind) if ">>> " not in docstring] == ["Kind.bare"]


def test_no_example_is_left_out():
    lines = sum(line.lstrip().startswith(">>> ") for source in FILES.values() for line in source.splitlines())
    attempted = sum(len(doctest.DocTestParser().get_examples(param.values[1])) for param in EXAMPLES)
    assert attempted == lines >= 40 and len(EXAMPLES) >= 20
