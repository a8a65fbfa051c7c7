"""What the build writes into the wheel. That the wheel works is shown by .ci/wheel, in an environment of its own."""

import ast
import importlib.util
import re
import sys
import types

import pytest

import afloc_jax
from tests.links import ROOT


@pytest.fixture(scope="module")
def build():
    """hatch_build.py, also where hatchling, whose hook it is, is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        interface = types.ModuleType("hatchling.builders.hooks.plugin.interface")
        interface.BuildHookInterface = object
        patch.setitem(sys.modules, interface.__name__, interface)
        specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "wheel"),
    [
        ("from data_pipelines import tokens\n", "from afloc_jax.data_pipelines import tokens\n"),
        ("if a:\n    from data_pipelines.x import (\n        b,\n    )\n", None),
        ("from configs import afloc  # from configs\n", "from afloc_jax.configs import afloc  # from configs\n"),
        (
            '"""\n    >>> from data_pipelines.x import y\n"""\n',
            '"""\n    >>> from afloc_jax.data_pipelines.x import y\n"""\n',
        ),
        ("from .configs import a\nfrom my_configs import b\nx = 'configs/demo.py'\n", "as it is"),
    ],
)
def test_the_lines_that_import_say_where_the_wheel_has_it(build, source, wheel):
    expected = source if wheel == "as it is" else wheel or source.replace("from data_", "from afloc_jax.data_")
    assert build.rewritten(source, "a.py") == expected


@pytest.mark.parametrize(
    "source",
    ["import data_pipelines.x\n", "import json, configs\n", "load('data_pipelines.x')\n", "f'configs.{x}.y'\n"],
)
def test_another_use_of_the_old_names_ends_the_build(build, source):
    with pytest.raises(SyntaxError, match=r"a\.py:1: "):
        build.rewritten(source, "a.py")


def test_the_wheel_names_no_package_that_it_lacks(build, tmp_path):
    build.gather(ROOT, tmp_path, "1.2")
    assert 'version = "1.2"' in (tmp_path / "_version.py").read_text()
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"py.typed", "configs/sweeps/levels.py", "data_pipelines/negatives.json", "serve/static/main.js"} <= kept
    assert not any("__pycache__" in name for name in kept)
    absent = ("data_pipelines", "configs", "launch", "tests", "benchmarks")
    for path in tmp_path.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] not in absent, path


def test_a_clone_has_the_version_that_a_build_without_git_gets():
    fallback = re.search(r'fallback_version = "(.+?)"', (ROOT / "pyproject.toml").read_text())[1]
    assert re.search(rf"^version: {re.escape(fallback)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f'__version__ = "{fallback}"' in (ROOT / "afloc_jax/__init__.py").read_text() and afloc_jax.__version__
