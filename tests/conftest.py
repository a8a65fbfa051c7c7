"""Shared fixtures. Reference numbers and real data live outside the repository; tests that need them skip loudly."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import hypothesis
import pytest

# Few examples, the same ones on every run; `pytest --hypothesis-profile=search tests/properties` looks for more.
hypothesis.settings.register_profile("bounded", max_examples=40, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("search", max_examples=3000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("bounded")

# Commands keep what they compile: those of one test run share it, and the user's own cache stays as it is.
_CACHE = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _CACHE.name

SHARED = Path(os.environ.get("AFLOC_SHARED", Path(__file__).resolve().parents[2] / "shared"))


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
