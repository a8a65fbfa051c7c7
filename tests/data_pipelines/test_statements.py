"""What reports say of a class by rule: stated, denied, silent."""

import pytest

from data_pipelines.statements import pattern_of, statement, stating

EFFUSION = ("pleural effusion", "effusion", "pleural fluid")


@pytest.mark.parametrize(
    ("sentences", "said"),
    [
        (["small left effusion"], "stated"),
        (["bilateral pleural effusions", "the heart is enlarged"], "stated"),
        (["no pleural effusion or pneumothorax"], "denied"),
        (["there is no evidence of pleural fluid"], "denied"),
        (["the heart is enlarged"], "silent"),
        (["possible small effusion"], "silent"),
        (["cannot exclude effusion"], "silent"),
        (["no new effusion"], "silent"),  # an old one may be there
        (["no large pleural effusion"], "silent"),  # a small one may be there
        (["heart size is normal and effusion has resolved"], "silent"),
        (["no effusion on the right", "small left effusion"], "silent"),  # both, which a class cannot say
        (["no pneumothorax", "moderate effusion"], "stated"),
        (["no change in effusion"], "silent"),
        ([], "silent"),
    ],
)
def test_a_report_states_a_class_denies_it_or_is_silent(sentences, said):
    assert statement(sentences, EFFUSION) == said


def test_names_are_whole_words_in_singular_or_plural():
    assert pattern_of(EFFUSION).findall("effusions, a pleural effusion, effusionless") == [
        "effusions",
        "pleural effusion",
    ]
    assert statement(["portable film"], ("port",)) == "silent"


def test_only_sentences_that_state_a_class_are_its_phrases():
    report = ["small left effusion", "no right effusion", "the effusion is large", "possible effusion"]
    assert stating(report, EFFUSION) == ["small left effusion", "the effusion is large"]
