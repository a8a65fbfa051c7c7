"""Fixtures of imports."""

from collections import OrderedDict

import pytest
import torch
from foreign_weights import checkpoint, tokenizer_folder, whole_state


@pytest.fixture
def released(tmp_path):
    """A checkpoint of the release's kind with all that it may carry, and its state dict."""
    state = whole_state()
    extra = OrderedDict(state)
    extra["text_encoder.model.embeddings.position_ids"] = torch.arange(32)[None]
    extra["img_encoder.local_f_embedder.weight"] = torch.zeros(32, 512, 1, 1)
    return checkpoint(tmp_path / "released.ckpt", extra), state, tokenizer_folder(tmp_path / "words")
