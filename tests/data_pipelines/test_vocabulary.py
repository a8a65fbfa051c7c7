"""A learned vocabulary has no word of few reports or few patients, and none that is excluded."""

import numpy as np
import pytest

from afloc_jax.errors import UserError
from data_pipelines.records import Record
from data_pipelines.tokens import learn_tokenizer, tokenize
from data_pipelines.vocabulary import VocabularyRule, learn_vocabulary, read_words

IMAGE = np.zeros((16, 16), np.uint8)


def record(text, patient="", study=""):
    return Record("image", IMAGE, text.split(". "), 1, patient, "", 16, 16, [], study=study)


def reports(count, patients, text="small left effusion"):
    """So many reports of so many patients, each with a number of its own."""
    return [record(f"{text}. {number}", f"p{number % patients}") for number in range(count)]


def has_word(records, word, **rule):
    return learn_vocabulary(records, VocabularyRule(**rule), 200).tokenizer.token_to_id(word) is not None


@pytest.mark.parametrize(("count", "patients", "kept"), [(5, 3, True), (4, 4, False), (9, 2, False), (5, 5, True)])
def test_a_word_is_learned_from_five_reports_of_three_patients(count, patients, kept):
    assert has_word([*reports(9, 9), *reports(count, patients, "roe")], "roe") is kept


def test_a_report_counts_once_however_many_images_it_has():
    common = reports(9, 9)
    same_study = [record("roe", f"p{k % 4}", f"s{k % 4}") for k in range(12)]
    assert not has_word([*common, *same_study], "roe")
    assert has_word([*common, *same_study, record("roe", "p0", "s9")], "roe")
    assert not has_word([*common, *[record("no roe", f"p{k % 4}") for k in range(12)]], "roe")


def test_reports_stand_for_patients_where_the_table_names_none():
    common = [record(f"small left effusion. {number}") for number in range(9)]
    assert not has_word([*common, *[record("roe has edema")] * 20], "roe"), "twenty images of one report"
    assert has_word([*common, *[record(f"roe {number}") for number in range(5)]], "roe")


def test_how_many_reports_and_patients_can_be_set():
    assert has_word([*reports(9, 9), record("roe", "p1")], "roe", reports=1, patients=1)
    with pytest.raises(UserError, match="stands in 5 reports of 3 patients") as error:
        learn_vocabulary([record("roe", "p1")] * 3)
    assert "roe" not in str(error.value) and "config.data.vocabulary_reports" in str(error.value)
    with pytest.raises(UserError, match="hold no word"):
        learn_vocabulary([record("")])


def test_rare_words_are_spelled_and_frequent_ones_learned_as_without_the_rule():
    frequent = reports(40, 40, "small left pleural effusion without pneumothorax")
    learned = learn_vocabulary([*frequent, record("roe fell", "p1")]).tokenizer
    assert not {"roe", "##oe", "fell"} & set(learned.get_vocab())
    ids = tokenize(learned, ["roe fell"], 16)["token_ids"]
    assert (ids != learned.token_to_id("[UNK]")).all(), "their letters are those of other words"
    everything = [record(text, f"p{k}") for k in range(5) for text in ("left effusion", f"clear lungs {k % 2}" * 5)]
    texts = [". ".join(each.sentences) for each in everything]
    same = learn_vocabulary(everything, VocabularyRule(1, 1), 80).tokenizer
    assert same.get_vocab() == learn_tokenizer(texts, 80).get_vocab()


def test_excluded_words_are_no_entries_even_as_pieces_of_others(tmp_path):
    (tmp_path / "names.txt").write_text("Dr. Smith\n\nO'Brien\n", encoding="utf-8")
    excluded = read_words(tmp_path / "names.txt")
    assert excluded == {"dr", "smith", "brien"}
    records = reports(60, 20, "dr smith saw smiths and smithson with brien and dr obrien")
    plain, without = (learn_vocabulary(records, VocabularyRule(excluded=words)) for words in ((), excluded))
    assert excluded <= set(plain.tokenizer.get_vocab())
    assert not {f"{mark}{word}" for word in excluded for mark in ("", "##")} & set(without.tokenizer.get_vocab())
    assert (without.account.excluded, plain.account.excluded) == (3, 0)
    (tmp_path / "names.txt").write_text("- \n")
    with pytest.raises(UserError, match="has no word"):
        read_words(tmp_path / "names.txt")
