"""Model folders to export."""

import pytest
from exports import DEMO, PLAIN, write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model folders of a plain model and of one with every option beyond the published recipe."""
    base = tmp_path_factory.mktemp("models")
    return {"plain": write_model(base / "plain", PLAIN), "demo": write_model(base / "demo", DEMO)}
