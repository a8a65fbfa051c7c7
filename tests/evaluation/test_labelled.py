"""Which class a record shows, by its labels and findings, and what thresholds those labels allow."""

from types import SimpleNamespace

import numpy as np

from afloc_jax.evaluation.classification.metrics import choose_thresholds
from afloc_jax.evaluation.labelled import read_labelled


def labelled(identifier, labels, *findings):
    found = [SimpleNamespace(label=name) for name in findings]
    return SimpleNamespace(id=identifier, image=np.zeros((8, 8), np.uint8), labels=labels, findings=found, patient="")


def test_labels_of_records_go_before_findings_and_what_is_not_listed_is_unknown():
    source = [
        labelled("a", {"Edema": 1, "mass": 0}, "Mass", "Lung Opacity"),  # the label of the mass says otherwise
        labelled("b", {"edema": 0, "mass": -1}),
        labelled("c", {"mass": 1}, "Airspace Opacity"),
        labelled("d", {}),
        labelled("e", {}, "Edema"),
    ]
    found = read_labelled(source)
    assert found.classes == ("airspace opacity", "edema", "mass") and found.ids == tuple("abce")
    unknown = np.nan
    expected = [
        [1, 1, 0],
        [unknown, 0, unknown],
        [1, unknown, 1],
        [unknown, 1, unknown],
    ]
    np.testing.assert_array_equal(found.labels, expected)
    assert found.left_out == 1 and list(found.exclusive()) == [-1, -1, -1, 1]
    kept, others = found.contrasted()
    assert kept.classes == ("edema", "mass") and others == ["airspace opacity"]
    absent = read_labelled(source, ["edema", "no finding"], unlisted="absent")
    np.testing.assert_array_equal(absent.labels, [[1, 0], [0, unknown], [0, 0], [1, 0]])
    assert absent.doubtful.tolist() == [[False, False], [False, True], [False, False], [False, False]]


def test_synonyms_are_one_class():
    source = [
        labelled("a", {"Pleural Effusion": 1}),
        labelled("b", {"Pleural Effusion": 0}),
        labelled("c", {}, "Effusion"),
    ]
    for classes in ((), ("effusion",), ("pleural effusion",)):
        np.testing.assert_array_equal(read_labelled(source, classes).labels, [[1], [0], [1]])
    findings = [labelled("a", {}, "Pleural Effusion"), labelled("b", {}, "Edema")]
    np.testing.assert_array_equal(read_labelled(findings, ["effusion"]).labels, [[1], [0]])


def test_thresholds_need_both_kinds_of_records():
    labels = np.array([[1, 1, 0], [1, 0, 0], [np.nan, 1, 0], [np.nan, 0, np.nan]])
    found = np.array([[0.9, 0.8, 0.1], [0.1, 0.3, 0.2], [0.5, 0.6, 0.3], [0.4, 0.1, 0.4]])
    np.testing.assert_array_equal(choose_thresholds(labels, found), [0.5, 0.6, 0.5])


def test_a_record_of_one_class_may_leave_the_others_unsaid_but_not_uncertain():
    """How CheXpert's 5 x 200 are drawn: one class is 1, none is -1."""
    source = [labelled("a", {"edema": 1}), labelled("b", {"edema": 1, "mass": -1}), labelled("c", {"mass": 1})]
    assert list(read_labelled(source).exclusive()) == [0, -1, 1]
