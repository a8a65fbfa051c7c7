"""The units that intervals and tests draw by default, and what intervals of few units cover."""

import numpy as np
import pytest

from afloc_jax.errors import UserError
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.statistics.coverage import coverage, few_positives, remark_on_few


def units(patients, images, **how):
    found = Bootstrap(**how).units(patients, images)
    return found.name, None if found.clusters is None else np.unique(found.clusters, return_inverse=True)[1].tolist()


def test_samples_of_a_patient_are_drawn_together_by_default_else_those_of_an_image():
    assert units(["p", "p", "q"], ["a", "b", "c"]) == ("patient", [0, 0, 1])
    assert units(["", "", ""], ["a", "a", "c"]) == ("image", [0, 0, 1])
    assert units(["p", "q", "r"], ["a", "b", "c"]) == ("sample", None)
    assert units(["p", "q", "r"], ["a", "a", "c"])[0] == "image"
    # A sample without a patient belongs to its image, also if a patient has the name of that image.
    name, index = units(["p", "p", "", "", "a"], ["a", "b", "a", "a", "c"])
    assert name == "patient" and index[0] == index[1] and index[2] == index[3] and len(set(index)) == 3


def test_a_stated_unit_is_kept():
    assert units(["p", "p"], ["a", "b"], unit="sample") == ("sample", None)
    assert units(["p", "p", "q"], ["a", "b", "b"], unit="image") == ("image", [0, 1, 1])
    with pytest.raises(UserError, match="1 of 2 samples name no patient"):
        Bootstrap(unit="patient").units(["p", ""], ["a", "b"])


def test_the_release_draws_samples_and_takes_percentiles_unless_told_otherwise():
    released = Bootstrap().as_released()
    assert (released.unit, released.interval, released.kind(of_auc=True)) == ("sample", "percentile", "percentile")
    assert Bootstrap(unit="patient", interval="bca").as_released() == Bootstrap(unit="patient", interval="bca")
    assert (Bootstrap().kind(), Bootstrap().kind(of_auc=True)) == ("percentile", "bca")


def test_settings_say_what_was_drawn():
    drawn = Bootstrap().units(["p", "p"], ["a", "b"])
    assert Bootstrap().to_dict()["unit"] == "auto"
    said = Bootstrap().to_dict(drawn)
    assert (said["unit"], said["interval"], said["auc_interval"]) == ("patient", "percentile", "bca")
    assert drawn.number(np.array([True, True])) == 1


@pytest.mark.parametrize("count", [3, 5, 12])
def test_intervals_of_few_units_cover_what_is_said(count):
    """4,000 samples of normal values, all columns of one bootstrap."""
    values = np.random.default_rng(count).normal(size=(count, 4000))
    resampled = Bootstrap(1000, 1).means(values, np.zeros(count, int), 1).resampled[:, 0]
    lower, upper = np.percentile(resampled, [2.5, 97.5], axis=0)
    assert ((lower <= 0) & (upper >= 0)).mean() == pytest.approx(coverage(count), abs=0.03)


def test_classes_with_few_positives_are_named_with_what_their_intervals_cover():
    few = few_positives({"edema": 5, "nodule": 20, "none": 0, "effusion": 1})
    assert {name: one.units for name, one in few.items()} == {"edema": 5, "effusion": 1}
    assert few["effusion"].covers == 0
    said = remark_on_few(few, "patient")
    assert "edema (5 patients, 85 %)" in said and "effusion (1 patient, 0 %)" in said and "Fewer than 20" in said
    assert remark_on_few({}, "patient") == ""
