"""Batches that are shared by processes, which are played one after the other here (test_processes.py has real ones)."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from afloc_jax.evaluation import labelled, sharing


@pytest.fixture
def play(monkeypatch):
    """A function that makes this process one of several; None stands for what the others would have sent."""

    def become(process, count):
        monkeypatch.setattr(jax, "process_index", lambda: process)
        monkeypatch.setattr(jax, "process_count", lambda: count)

    return become


def test_every_item_is_scored_by_one_process(play):
    found = []
    for process in range(3):
        play(process, 3)
        found.append(list(sharing.own_items("abcdefg")))
    assert found[1] == [None, "b", None, None, "e", None, None]
    assert [[item for item in several if item] for several in zip(*found, strict=True)] == [
        [item] for item in "abcdefg"
    ]


def test_one_process_has_all_results():
    assert sharing.gathered([1, 2]) == [1, 2] and sharing.gathered([]) == [] and sharing.of_first(None) is None


def test_an_image_is_encoded_by_one_process_only(play, monkeypatch):
    sent, encoded = [], []
    model = SimpleNamespace(
        batch_size=2,
        embed_squares=lambda squares: encoded.append(len(squares)) or SimpleNamespace(whole=squares[:, 0, :3] * 1.0),
    )
    source = [SimpleNamespace(image=np.full((4, 4), row, np.uint8)) for row in range(5)]
    monkeypatch.setattr(labelled, "gathered", lambda parts: sent.append(parts) or [np.zeros((5, 3))])
    for process in range(2):
        play(process, 2)
        labelled.embed_records(model, source, np.arange(5), "pad")
    assert encoded == [2, 1, 2]  # batches 0 and 2 by the first process, batch 1 by the second
    merged = np.concatenate([next(part for part in several if part is not None) for several in zip(*sent, strict=True)])
    np.testing.assert_array_equal(merged[:, 0], np.arange(5))
