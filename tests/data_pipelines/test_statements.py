"""What reports say of a class by rule: stated, denied, silent."""

import tarfile
import time
import xml.etree.ElementTree as ElementTree

import pytest

from data_pipelines.reports import clean_report
from data_pipelines.statements import pattern_of, statement, stating

EFFUSION = ("pleural effusion", "effusion", "pleural fluid")


@pytest.mark.parametrize("words", ["heart ", "lungs are ", "cardiac silhouette and ", "lung fields appear x "])
def test_a_sentence_takes_time_in_proportion_to_its_length(words):
    def seconds(letters):
        text, taken = (words * letters)[:letters], []
        for _ in range(5):
            begun = time.process_time()
            assert statement([text], ("cardiomegaly", "atelectasis")) == "silent"
            taken.append(time.process_time() - begun)
        return min(taken)

    assert seconds(1 << 17) < 12 * seconds(1 << 14)


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
        (["no pleural effusion is seen"], "denied"),
        (["no cardiomegaly with small effusions"], "silent"),
        (["evaluation for effusion is limited"], "silent"),
        ([], "silent"),
    ],
)
def test_a_report_states_a_class_denies_it_or_is_silent(sentences, said):
    assert statement(sentences, EFFUSION) == said


@pytest.mark.parametrize(
    ("sentence", "name", "said"),
    [
        ("the lungs are clear", "consolidation", "denied"),
        ("lungs are well expanded and clear", "nodule", "denied"),
        ("the lungs are clear of edema", "consolidation", "silent"),
        ("the lungs are clear", "pneumothorax", "silent"),
        ("heart size is within normal limits", "cardiomegaly", "denied"),
        ("normal cardiac silhouette", "cardiomegaly", "denied"),
        ("the heart is enlarged", "cardiomegaly", "silent"),
        ("cardiomegaly but otherwise normal", "cardiomegaly", "silent"),
    ],
)
def test_clear_lungs_and_a_normal_heart_deny_without_naming(sentence, name, said):
    assert statement([sentence], (name,)) == said


def test_names_are_whole_words_in_singular_or_plural():
    assert pattern_of(EFFUSION).findall("effusions, a pleural effusion, effusionless") == [
        "effusions",
        "pleural effusion",
    ]
    assert statement(["portable film"], ("port",)) == "silent"


def test_only_sentences_that_state_a_class_are_its_phrases():
    report = ["small left effusion", "no right effusion", "the effusion is large", "possible effusion"]
    assert stating(report, EFFUSION) == ["small left effusion", "the effusion is large"]


def test_real_reports_state_and_deny_what_their_readers_indexed(shared_data):
    """3,927 reports of the Indiana collection, of which readers indexed the findings by terms (MeSH)."""
    reports = []
    with tarfile.open(shared_data / "iu_reports" / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                root = ElementTree.parse(archive.extractfile(member)).getroot()
                texts = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
                terms = " ".join(term.text or "" for term in root.iter("major")).lower()
                reports.append((clean_report(texts.get("FINDINGS", ""), texts.get("IMPRESSION", "")).sentences, terms))
    for words, term, stated, denials in (
        (EFFUSION, "pleural effusion", 0.9, 1600),
        (("pneumothorax",), "pneumothorax", 0.8, 1600),
        (("cardiomegaly", "enlargement of the heart"), "cardiomegaly", 0.95, 1600),
    ):
        said = [(statement(sentences, words), term in terms) for sentences, terms in reports]
        indexed = {kind: [true for one, true in said if one == kind] for kind in ("stated", "denied")}
        assert sum(indexed["stated"]) >= stated * len(indexed["stated"]) > 15
        assert len(indexed["denied"]) >= denials
        assert sum(indexed["denied"]) <= 0.005 * len(indexed["denied"])
