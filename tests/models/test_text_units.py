"""Merging of pieces into words, sentences and the report, against plain Python loops."""

import jax
import numpy as np
import pytest

from afloc_jax.levels import TokenBatch
from afloc_jax.models.text_units import text_levels


def merged_by_loops(pieces, word_ids, sentence_ids, merge):
    """The definition, one text at a time: words, sentences and report of pieces [L, D]."""
    words, sentences = np.zeros_like(pieces), np.zeros_like(pieces)
    last_word = max(word_ids) - 1  # the one before [SEP]
    for word in range(max(word_ids) + 1):
        members = [pieces[slot] for slot in range(len(pieces)) if word_ids[slot] == word]
        words[word] = sum(members)
        if merge == "mean" and word != last_word:
            words[word] /= len(members)
    for sentence in range(max(sentence_ids) + 1):
        members = [words[slot] for slot in range(len(pieces)) if sentence_ids[slot] == sentence]
        sentences[sentence] = sum(members) / len(members)
    return words, sentences, words.sum(axis=0) / len(pieces)


@pytest.mark.parametrize("merge_pieces", ["sum", "mean"])
@pytest.mark.parametrize("merge_layers", ["sum", "mean"])
def test_units_equal_plain_loops(tokens, merge_layers, merge_pieces):
    rng = np.random.default_rng(0)
    # The last word of the first text gets two pieces, so that the rule about it shows in mean mode.
    word_ids = np.array(tokens.word_ids)
    word_ids[0] = [0, 1, 1, 2, 3, 3, 4, -1, -1]
    sentence_ids = np.array(tokens.sentence_ids)
    sentence_ids[0] = [0, 1, -1, 2, 3, -1, -1, -1, -1]
    tokens = tokens.replace(word_ids=word_ids, sentence_ids=sentence_ids)
    states = [rng.standard_normal((2, 9, 5)).astype(np.float32) for _ in range(4)]
    levels = jax.jit(text_levels, static_argnames=("last_layers", "merge_layers", "merge_pieces"))(
        states, tokens, last_layers=3, merge_layers=merge_layers, merge_pieces=merge_pieces
    )
    pieces = sum(states[1:]) / (3 if merge_layers == "mean" else 1)
    for row in range(2):
        words, sentences, report = merged_by_loops(pieces[row], word_ids[row], sentence_ids[row], merge_pieces)
        np.testing.assert_allclose(levels.words[row], words, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(levels.sentences[row], sentences, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(levels.report[row], report, rtol=1e-5, atol=1e-6)


def test_padding_reaches_no_unit(tokens):
    """Other hidden states at padded positions change nothing, and get no gradient."""
    states = np.random.default_rng(0).standard_normal((2, 9, 5)).astype(np.float32)
    spoiled = np.where(tokens.word_ids[..., None] < 0, 1e6, states).astype(np.float32)
    one, other = (text_levels([value], tokens, last_layers=1) for value in (states, spoiled))
    jax.tree.map(np.testing.assert_array_equal, one, other)

    def total(value):
        levels = text_levels([value], tokens, last_layers=1)
        return levels.words.sum() + levels.sentences.sum() + levels.report.sum()

    gradient = jax.grad(total)(states)
    assert (np.asarray(gradient)[tokens.word_ids < 0] == 0).all()
    assert (np.asarray(gradient)[tokens.word_ids >= 0] != 0).all()


def test_a_row_of_padding_only_is_zero_and_finite(tokens):
    """Such rows fill up the last batch of an evaluation."""
    empty = TokenBatch(
        *(
            np.full_like(array, value)
            for array, value in zip(
                (tokens.token_ids, tokens.word_ids, tokens.sentence_ids, tokens.word_count, tokens.sentence_count),
                (0, -1, -1, 0, 0),
                strict=True,
            )
        )
    )
    for merge in ("sum", "mean"):
        levels = text_levels([np.ones((2, 9, 5), np.float32)], empty, last_layers=1, merge_pieces=merge)
        for value in (levels.words, levels.sentences, levels.report):
            assert (np.asarray(value) == 0).all()


def test_half_precision_states_are_merged_in_full_precision(tokens):
    states = [jax.numpy.full((2, 9, 5), 1 + 2**-7, jax.numpy.bfloat16)] * 4
    levels = text_levels(states, tokens)
    assert levels.words.dtype == np.float32
    np.testing.assert_array_equal(levels.words[0, 1], np.full(5, 8 * (1 + 2**-7), np.float32))  # 2 pieces, 4 layers
