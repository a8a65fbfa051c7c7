"""Text becomes token ids and segment ids."""

import json
import tracemalloc

import numpy as np
import pytest

from afloc_jax.errors import UserError
from data_pipelines import tokens
from data_pipelines.tokens import (
    SPECIAL_TOKENS,
    SentenceTokenizer,
    learn_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenize,
)

WORDS = [".", ",", "no", "left", "effusion", "pneumo", "##thorax", "##es", "edema", "1", "5", "cm"]
VOCABULARY = [*SPECIAL_TOKENS, *WORDS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return load_tokenizer(folder)


def slow_segments(pieces: list[str], separators: set[int], compatible: bool):
    """The definition in plain Python: merge pieces, walk over the words, close a sentence at each separator.

    `separators` are the positions of the pieces "." that end a sentence.
    """
    words: list[list[int]] = []
    for position, piece in enumerate(pieces):
        if piece.startswith("##") and position:
            words[-1].append(position)
        else:
            words.append([position])
    inner = words[1:-1]
    sentences: list[list[int]] = []
    opened = False
    for slot, word in enumerate(inner, start=1):
        last = slot == len(inner)
        if word[0] in separators and not last:
            opened = False
            continue
        if word[0] in separators and sentences and not compatible:
            sentences[-1].append(slot)
            continue
        if not opened:
            sentences.append([])
            opened = True
        sentences[-1].append(slot)
    counted = [word for word in inner if not (compatible and pieces[word[0]].startswith("["))]
    return words, sentences, len(counted) + 1, len(sentences) + 1


def check_against_definition(tokenizer, texts, max_tokens, compatible, separators=None):
    result = tokenize(tokenizer, texts, max_tokens, compatible=compatible)
    vocabulary = {index: piece for piece, index in tokenizer.get_vocab().items()}
    for row in range(len(texts)):
        ids = result["token_ids"][row]
        pieces = [vocabulary[i] for i in ids[: np.flatnonzero(ids).max() + 1]]
        assert pieces[0] == "[CLS]" and pieces[-1] == "[SEP]"
        marks = {k for k, piece in enumerate(pieces) if piece == "."} if separators is None else separators
        words, sentences, word_count, sentence_count = slow_segments(pieces, marks, compatible)
        expected_words = np.full(max_tokens, -1)
        for slot, positions in enumerate(words):
            expected_words[positions] = slot
        expected_sentences = np.full(max_tokens, -1)
        expected_sentences[0], expected_sentences[len(words) - 1] = 0, len(sentences) + 1
        for number, slots in enumerate(sentences, start=1):
            expected_sentences[slots] = number
        np.testing.assert_array_equal(result["word_ids"][row], expected_words, err_msg=texts[row])
        np.testing.assert_array_equal(result["sentence_ids"][row], expected_sentences, err_msg=texts[row])
        assert (result["word_count"][row], result["sentence_count"][row]) == (word_count, sentence_count), texts[row]
    return result


def test_tokens_and_sentence_units_equal_the_release(goldens):
    expected, arrays = json.loads((goldens / "model.json").read_text()), np.load(goldens / "model.npz")
    tokenizer = load_tokenizer(goldens / "bert")
    result = tokenize(tokenizer, expected["reports"], expected["word_num"])
    np.testing.assert_array_equal(result["token_ids"], arrays["tokens/input_ids"])
    words, sentences = (arrays[f"text_sum/{key}"].transpose(0, 2, 1) for key in ("word", "sent"))
    for row, (texts, units) in enumerate(zip(expected["words"], expected["sentence_units"], strict=True)):
        used = [word for word in texts if word != "[PAD]"]
        assert result["word_ids"][row].max() + 1 == len(used)
        assert result["word_count"][row] == 1 + sum(not word.startswith("[") for word in used)
        assert result["sentence_count"][row] == 1 + sum(unit.startswith("sent") for unit in units)
        for unit in range(result["sentence_ids"][row].max() + 1):  # the release's own embeddings, merged by our ids
            mean = words[row][result["sentence_ids"][row] == unit].mean(axis=0)
            np.testing.assert_allclose(mean, sentences[row, unit], atol=1e-5)


def test_prompts_of_the_full_size_model_have_the_releases_ids(goldens, shared_data):
    from data_pipelines.reports import clean_prompt

    tokenizer = load_tokenizer(shared_data / "vocab")
    assert tokenizer.get_vocab_size() == 28996
    arrays = np.load(goldens / "end_to_end.npz")
    for number, prompt in enumerate(json.loads((goldens / "end_to_end.json").read_text())["prompts"]):
        result = tokenize(tokenizer, [clean_prompt(prompt, compatible=True)], 97)
        np.testing.assert_array_equal(result["token_ids"][0], arrays[f"prompt{number}/input_ids"])


@pytest.mark.parametrize("compatible", [False, True])
def test_segments_follow_the_definition_on_odd_texts(tokenizer, compatible):
    texts = [
        "no left effusion. pneumothoraxes. edema",
        "edema.",
        "edema. . no",
        "edema. .",
        ". edema",
        ".",
        ". .",
        "",
        "xyzzy no",
        "left xyzzy. xyzzy. edema",
        "pneumothorax " * 20,
        "no. " * 20,
    ]
    for max_tokens in (3, 4, 7, 12, 40):
        check_against_definition(tokenizer, texts, max_tokens, compatible)


@pytest.mark.parametrize("compatible", [False, True])
def test_segments_follow_the_definition_on_random_texts(tokenizer, compatible):
    rng = np.random.default_rng(0)
    choices = ["no", "left", "effusion", "pneumothorax", "pneumothoraxes", "edema", "xyzzy", ".", ". ."]
    texts = [" ".join(rng.choice(choices, rng.integers(0, 25))) for _ in range(300)]
    check_against_definition(tokenizer, texts, 24, compatible)


def test_unknown_words_count_unless_the_release_is_asked_for(tokenizer):
    text = ["no xyzzy effusion"]
    assert tokenize(tokenizer, text, 10)["word_count"] == [4]
    assert tokenize(tokenizer, text, 10, compatible=True)["word_count"] == [3]


def test_a_decimal_point_ends_no_sentence(tokenizer):
    result = tokenize(tokenizer, ["left 1.5 cm. no effusion", "left 1. 5 cm"], 16)
    np.testing.assert_array_equal(result["sentence_count"], [3, 3])
    np.testing.assert_array_equal(result["sentence_ids"][0], [0, 1, 1, 1, 1, 1, -1, 2, 2, 3, *[-1] * 6])
    assert tokenize(tokenizer, ["left 1.5 cm. no effusion"], 16, compatible=True)["sentence_count"] == [4]


def test_accents_and_capitals_meet_the_same_entries(tokenizer):
    result = tokenize(tokenizer, ["LEFT Edéma", "left edema"], 8)
    np.testing.assert_array_equal(result["token_ids"][0], result["token_ids"][1])


def test_letters_of_other_alphabets_keep_their_marks_in_a_learned_vocabulary(tmp_path):
    words = ["\u304c\u3093", "\u304b\u3093", "\u0939\u093f\u0902\u0926\u0940", "\u0439", "\u0438"]
    learned = learn_tokenizer([" ".join(words)] * 4, 300)
    save_tokenizer(learned, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["strip_accents"] is False
    for tokenizer in (learned, load_tokenizer(tmp_path)):
        ids = tokenize(tokenizer, words, 24)["token_ids"]
        assert len(np.unique(ids, axis=0)) == len(words) and not (ids == tokenizer.token_to_id("[UNK]")).any()


def test_a_vocabulary_may_hold_characters_that_unicode_breaks_lines_at(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n\u2028\nleft\n##s\n", encoding="utf-8")
    assert load_tokenizer(tmp_path).token_to_id("left") == 5


def test_arrays_have_the_documented_types(tokenizer):
    result = tokenize(tokenizer, ["no", "left effusion"], 9)
    shapes = {name: (array.shape, array.dtype) for name, array in result.items()}
    assert shapes == {
        **dict.fromkeys(("token_ids", "word_ids", "sentence_ids"), ((2, 9), np.int32)),
        **dict.fromkeys(("word_count", "sentence_count"), ((2,), np.int32)),
    }
    with pytest.raises(UserError, match="at least 3"):
        tokenize(tokenizer, ["no"], 2)


def test_a_learned_vocabulary_depends_on_the_texts_alone(tmp_path):
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 9))) for _ in range(400)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(300)]
    first, second = learn_tokenizer(texts, 300), learn_tokenizer(texts[::-1], 300)
    assert first.get_vocab() == second.get_vocab()
    tied = [f"confidential patient roe has effusion {number}" for number in range(24)]  # all words equally frequent
    assert len({tuple(sorted(learn_tokenizer(tied, 70).get_vocab().items())) for _ in range(8)}) == 1
    assert first.get_vocab_size() <= 300
    assert [first.token_to_id(name) for name in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    save_tokenizer(first, tmp_path)
    loaded = load_tokenizer(tmp_path)
    for name, array in tokenize(first, texts, 40).items():
        np.testing.assert_array_equal(array, tokenize(loaded, texts, 40)[name])
    (tmp_path / "tokenizer.json").unlink()
    from_list = tokenize(load_tokenizer(tmp_path), texts, 40)["token_ids"]
    np.testing.assert_array_equal(from_list, tokenize(first, texts, 40)["token_ids"])
    assert (tokenize(first, ["a. b"], 8)["sentence_count"] == 3).all()  # the period is always in the vocabulary


def test_saved_tokenizer_gives_transformers_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = ["small left effusion. no pneumothorax", "edema"]
    tokenizer = learn_tokenizer(texts * 5, 120)
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenize(tokenizer, texts, 20)["token_ids"]
    for row, text in zip(ours, texts, strict=True):
        assert theirs(text.upper())["input_ids"] == row[row > 0].tolist()


def test_a_folder_without_a_usable_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected tokenizer.json or vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nno\n")
    with pytest.raises(UserError, match=r"lacks \[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(reversed(VOCABULARY)))
    with pytest.raises(UserError, match="must be 0"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{not json")
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no word"):
        learn_tokenizer(["", " "])


SPLITS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "pre_tokenizer", SPLITS, "its pre_tokenizer is not BERT's"),
        ("model", "type", "WordLevel", "not a readable tokenizer|a WordLevel tokenizer"),
        ("model", "unk_token", "[MASK]", r"unknown words must be \[UNK\]"),
        ("model", "continuing_subword_prefix", "@@", "begin with ##"),
        ("model", "max_input_chars_per_word", 10**9, "max_input_chars_per_word is more than 1,000"),
        ("vocab", "zebra", 7, "two entries have the same id"),
        ("vocab", "zebra", 2**32 - 1, "an id of 4,294,967,295, beyond any vocabulary"),
    ],
)
def test_a_tokenizer_that_is_not_berts_is_refused(section, key, value, message, tokenizer, tmp_path):
    """Its file may hold an expression that its library panics at, or ask for a table of 4 billion entries."""
    content = json.loads(tokenizer.to_str())
    place = {None: content, "model": content["model"], "vocab": content["model"]["vocab"]}[section]
    place[key] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("max_tokens", [3, 12, 40])
def test_sentences_that_are_remembered_give_the_arrays_of_the_whole_text(max_tokens, monkeypatch):
    """Decimals, lone periods, special tokens, unknown and long words, empty reports; told twice, and forgotten."""
    sentences = [
        "a 1.5 cm nodule",
        "no pleural effusion",
        "",
        ".",
        ". .",
        "2.",
        "3.5",
        "x [SEP] y",
        "zürich",
        "a" * 120,
    ]
    rng = np.random.default_rng(0)
    reports = [[sentences[k] for k in rng.permutation(10)[: rng.integers(0, 10)]] for _ in range(60)] + [[], [""]]
    tokenizer = learn_tokenizer(sentences[:2] * 9, 80)
    expected = tokenize(tokenizer, [". ".join(report) for report in reports], max_tokens)
    remembered = SentenceTokenizer(tokenizer, max_tokens)
    for limit in (1000, 1000, 4):
        monkeypatch.setattr(tokens, "_REMEMBERED_SENTENCES", limit)
        for report in ([], ["new"]):  # on its own, and beside a sentence that is met for the first time
            found = remembered([*reports, report])
            for key, array in expected.items():
                np.testing.assert_array_equal(found[key][:-1], array, err_msg=key)
                assert found[key].dtype == array.dtype


def test_one_long_sentence_does_not_make_the_others_as_long(tokenizer):
    """The pieces of 2,000 sentences beside one of 200,000 words would take 1.6 GB."""
    long = "small effusion " * 100_000
    read = SentenceTokenizer(tokenizer, 8)
    tracemalloc.start()
    found = read([[f"small {number}" for number in range(2000)], [long.strip()], ["small", long.strip()]])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    expected = tokenize(tokenizer, ["small " * 30, long, f"small. {long}"], 8)
    for name in ("token_ids", "word_ids", "word_count"):
        np.testing.assert_array_equal(found[name][1:], expected[name][1:], err_msg=name)
