"""Properties of token arrays, for any text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.tokens import SentenceTokenizer, learn_tokenizer, tokenize
from tests.data_pipelines.test_tokens import check_against_definition

TOKENIZER = learn_tokenizer(
    ["small left pleural effusion measuring 1.5 cm", "no edema, no nodule", "heart (large)"], 90
)
CLS, SEP = (TOKENIZER.token_to_id(piece) for piece in ("[CLS]", "[SEP]"))
PLAIN = ["small", "left", "effusions", "edema", "unknownword", ".", "..", ",", "é", "İ", "(", "", "\t"]
WORDS = st.sampled_from([*PLAIN, "1.5", "2.", ".3", "[SEP]", "[UNK]"])
TEXTS = st.lists(WORDS, max_size=30).map(" ".join) | st.text(max_size=60)
LENGTHS = st.integers(3, 40)


@given(st.lists(st.sampled_from(PLAIN), max_size=30).map(" ".join), LENGTHS, st.booleans())
def test_segments_follow_the_definition(text, length, compatible):
    check_against_definition(TOKENIZER, [text], length, compatible)


@given(TEXTS, LENGTHS, st.booleans())
def test_the_pieces_are_the_librarys_between_cls_and_sep(text, length, compatible):
    (ids,) = tokenize(TOKENIZER, [text], length, compatible=compatible)["token_ids"]
    kept = TOKENIZER.encode(text, add_special_tokens=False).ids[: length - 2]
    assert ids.tolist() == [CLS, *kept, SEP, *[0] * (length - 2 - len(kept))]


@given(TEXTS, LENGTHS, st.integers(1, 9))
def test_padding_changes_nothing(text, length, more):
    short, long = tokenize(TOKENIZER, [text], length), tokenize(TOKENIZER, [text], length + more)
    if (long["token_ids"][0, length:] == 0).all():  # nothing was cut
        for name in ("token_ids", "word_ids", "sentence_ids"):
            np.testing.assert_array_equal(short[name][0], long[name][0, :length])
        assert short["word_count"] == long["word_count"] and short["sentence_count"] == long["sentence_count"]


SENTENCES = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.lists(SENTENCES, max_size=4), min_size=1, max_size=3), LENGTHS)
def test_remembered_sentences_give_the_arrays_of_the_whole_text(reports, length):
    ours = SentenceTokenizer(TOKENIZER, length)
    whole = tokenize(TOKENIZER, [". ".join(report) for report in reports], length)
    for _ in range(2):  # the second time from memory
        for name, array in ours(reports).items():
            np.testing.assert_array_equal(array, whole[name], err_msg=name)


@pytest.mark.parametrize("separator", [". ", " . ", " .\n"])
@given(st.lists(st.sampled_from(["no edema", "small left effusion", "heart 1.5 cm"]), min_size=1, max_size=5))
def test_sentences_are_counted_behind_cls(separator, sentences):
    assert tokenize(TOKENIZER, [separator.join(sentences)], 60)["sentence_count"] == 1 + len(sentences)
