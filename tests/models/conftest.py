"""A tiny model config and token batch that the model tests share."""

import numpy as np
import pytest

from afloc_jax.levels import TokenBatch
from configs.afloc import get_config


@pytest.fixture
def tiny_config():
    """`config.model` with a text encoder of two narrow layers and a small image tower."""
    config = get_config().model
    config.projection_dim = 8
    config.image.backbone = "resnet_small"
    config.image.input_size = 32
    config.image.options = {"widths": (4, 8, 8), "stem_width": 4}
    config.text.bert.update(
        {
            "vocab_size": 30,
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 12,
        }
    )
    config.text.last_layers = 2
    return config


@pytest.fixture
def tokens():
    """Two texts in nine slots: [CLS] ab #c . d e [SEP], and [CLS] a [SEP]; words a and #c are one."""
    return TokenBatch(
        token_ids=np.array([[2, 7, 8, 5, 9, 10, 3, 0, 0], [2, 7, 3, 0, 0, 0, 0, 0, 0]], np.int32),
        word_ids=np.array([[0, 1, 1, 2, 3, 4, 5, -1, -1], [0, 1, 2, -1, -1, -1, -1, -1, -1]], np.int32),
        sentence_ids=np.array([[0, 1, -1, 2, 2, 3, -1, -1, -1], [0, 1, 2, -1, -1, -1, -1, -1, -1]], np.int32),
        word_count=np.array([5, 2], np.int32),
        sentence_count=np.array([3, 2], np.int32),
    )
