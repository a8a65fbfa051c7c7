"""Hashes of texts: equal for equal texts alone, the same in every process, none where there is no sentence."""

import hashlib

import numpy as np

from data_pipelines.hashes import hashed_sentences, text_hashes


def test_a_hash_is_the_first_eight_bytes_of_blake2b():
    made = text_hashes([["clear lungs", "no effusion"]], max_tokens=9)
    for text, found in (
        ("clear lungs. no effusion", made["report_hash"][0]),
        ("clear lungs", made["sentence_hashes"][0, 0]),
        ("no effusion", made["sentence_hashes"][0, 1]),
    ):
        expected = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), ">u4")
        np.testing.assert_array_equal(found, expected)
    assert not made["sentence_hashes"][0, 2:].any()


def test_all_sentences_that_fit_have_one():
    """[CLS] and [SEP] aside, n one-word sentences and the periods between them take 2 n - 1 slots."""
    for slots in (3, 4, 5, 97, 98):
        most = hashed_sentences(slots)
        assert 2 + 2 * most - 1 <= slots < 2 + 2 * (most + 1) - 1
    made = text_hashes([[f"s{n}" for n in range(9)], []], max_tokens=9)["sentence_hashes"]
    assert made.shape == (2, 4, 2) and len({tuple(pair) for pair in made[0].tolist()}) == 4
    assert not made[1].any()


def test_a_million_texts_have_a_million_hashes():
    texts = [[f"text {n}"] for n in range(1_000_000)]
    made = text_hashes(texts, 3)["report_hash"].astype(np.uint64)
    assert len(np.unique(made[:, 0] << np.uint64(32) | made[:, 1])) == len(texts)
