"""Fixtures of imports and exports."""

from collections import OrderedDict

import pytest
import torch
from exports import DEMO, PLAIN, write_model
from foreign_weights import checkpoint, tokenizer_folder, whole_state


@pytest.fixture
def released(tmp_path):
    """A checkpoint of the release's kind with all that it may carry, and its state dict."""
    state = whole_state()
    extra = OrderedDict(state)
    extra["text_encoder.model.embeddings.position_ids"] = torch.arange(32)[None]
    extra["img_encoder.local_f_embedder.weight"] = torch.zeros(32, 512, 1, 1)
    return checkpoint(tmp_path / "released.ckpt", extra), state, tokenizer_folder(tmp_path / "words")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model folders of a plain model and of one with every option beyond the published recipe."""
    base = tmp_path_factory.mktemp("models")
    return {"plain": write_model(base / "plain", PLAIN), "demo": write_model(base / "demo", DEMO)}
