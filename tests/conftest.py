"""Shared fixtures. Reference numbers and real data live outside the repository; tests that need them skip loudly."""

import gc
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

from tests.compiler import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", xla_flags(devices=8))
# Tests compile much and run little. JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest tests the programs that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jaxtyping
import pytest

from tests import shapes

shapes.install()

# Few examples, the same ones on every run; `pytest --hypothesis-profile=search tests/properties` looks for more.
hypothesis.settings.register_profile("bounded", max_examples=40, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("search", max_examples=3000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("bounded")

# What is compiled is kept for the tests and commands of one test run. The processes of `pytest -n` share it. The user's
# own cache stays as it is.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["XDG_CACHE_HOME"] = _CACHE.name

SHARED = Path(os.environ.get("AFLOC_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Tests read programs that others have compiled."""
    import jax

    jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["XDG_CACHE_HOME"], "tests"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="module", autouse=True)
def programs_dropped():
    """The compiled programs of a file of tests do not stay in memory: those of all files would take 7 GB a process."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()


def pytest_collection_finish() -> None:
    """What was imported stays, and is no longer looked through for garbage, which JAX makes much of as it traces."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(scope="session")
def emulator():
    """The environment of a local stand-in for Google Cloud Storage, see tests/emulator.py."""
    for package in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install -r requirements-dev.txt")
    from tests.emulator import serving

    with serving() as environment:
        yield environment


@pytest.fixture
def bucket(emulator, request, monkeypatch):
    """A folder of a bucket for one test: gs://bucket/<name of the test>."""
    for name, value in emulator.items():
        monkeypatch.setenv(name, value)
    return f"gs://bucket/{re.sub('[^a-zA-Z0-9_]', '-', request.node.name)}"


@pytest.fixture
def unchecked():
    """Shapes are not checked, for a test that hands in wrong ones to see them refused in words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"SKIPPED: {folder} is absent; set AFLOC_SHARED to the folder that holds {name}/")
    return folder


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of reference numbers made with the published release."""
    return _folder("goldens")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real radiographs, reports and lesion masks."""
    return _folder("data")


# Without PyTorch (not every Python has a build for CPUs alone) what compares with it is left out; the header says so.
_TORCH = importlib.util.find_spec("torch") is not None
_COMPARES = re.compile(
    r"^ *(import|from) (torch|safetensors\.torch|exports|foreign_weights|(tests\.)?reference\.torch)", re.MULTILINE
)


def _needs_torch(path: Path) -> bool:
    file = path / "conftest.py" if path.is_dir() else path
    return file.suffix == ".py" and file.exists() and _COMPARES.search(file.read_text()) is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if not _TORCH and _needs_torch(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


def pytest_report_header() -> str:
    if _TORCH:
        return ""
    tests = Path(__file__).parent
    left_out = [
        str(path.relative_to(tests))
        for path in sorted(tests.rglob("test_*.py"))
        if any(_needs_torch(place) for place in (path, *path.parents) if tests in place.parents)
    ]
    return f"NOT RUN, for PyTorch is not installed, {len(left_out)} modules: {', '.join(left_out)}"
