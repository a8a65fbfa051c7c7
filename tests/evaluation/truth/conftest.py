"""Truth files that tests write."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    def save(content, name="truth.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return save
