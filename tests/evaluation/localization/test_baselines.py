"""Priors against means written out by hand, and the partners of the baseline of another image."""

from types import SimpleNamespace

import numpy as np
import pytest

from afloc_jax.errors import UserError
from afloc_jax.evaluation.localization.baselines import LeftOutPriors, TrainingPriors
from afloc_jax.evaluation.localization.samples import About, named_by_class, partners, read_truths
from afloc_jax.evaluation.truth.sample import Drawing, Truth, negative
from tests.evaluation.discs import record


def masks(count, seed, size=8):
    return np.random.default_rng(seed).integers(0, 3, (count, size, size)).astype(np.uint8)


def records(*findings):
    """One record for each (label, prompt, mask)."""
    return [SimpleNamespace(findings=[SimpleNamespace(label=a, prompt=b, mask=c)]) for a, b, c in findings]


def truth_of(category, prompt="", mask=None, image="", patient=""):
    return Truth(
        f"{image}#{category}", prompt, category, masks(1, 0)[0] if mask is None else mask, image, patient=patient
    )


def test_the_location_prior_is_the_share_of_training_findings_that_cover_a_pixel():
    edema, effusion = masks(3, 0), masks(5, 1)
    source = records(*(("edema", "", mask) for mask in edema), *(("effusion", "", mask) for mask in effusion))
    truths = [truth_of(name) for name in ("edema", "effusion", "nodule")]
    priors = TrainingPriors(source, truths)
    first, second, third = priors.maps(truths)
    np.testing.assert_allclose(first, (edema > 0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(second, (effusion > 0).mean(axis=0), rtol=1e-6)
    # A category without training masks has the prior of all findings.
    np.testing.assert_allclose(third, (np.concatenate([edema, effusion]) > 0).mean(axis=0), rtol=1e-6)
    assert priors.about("the category") == "mean mask of the category in 8 training masks"


def test_the_prompt_prior_is_the_mean_of_the_prompts_own_masks_and_a_rare_prompt_has_that_of_its_category():
    left, right = masks(5, 0), masks(4, 1)
    source = records(*(("edema", "Left edema.", mask) for mask in left), *(("edema", "right edema", m) for m in right))
    source += records(*(("nodule", "left  edema", mask) for mask in masks(7, 2)))  # another category
    truths = [truth_of("edema", prompt) for prompt in ("left edema", "right edema", "never seen")]
    priors = TrainingPriors(source, truths)
    of_left, of_right, of_unseen = priors.maps(truths, by_prompt=True)
    np.testing.assert_allclose(of_left, (left > 0).mean(axis=0), rtol=1e-6)
    of_category = (np.concatenate([left, right]) > 0).mean(axis=0)
    np.testing.assert_allclose(of_right, of_category, rtol=1e-6)  # four masks are fewer than five
    np.testing.assert_allclose(of_unseen, of_category, rtol=1e-6)
    assert priors.rare(truths) == 2


def test_a_prior_needs_masks_of_one_size():
    truths = [truth_of("edema")]
    assert not TrainingPriors(records(), truths).usable
    with pytest.raises(UserError, match=r"training masks are \(4, 4\), evaluation masks \(8, 8\)"):
        TrainingPriors(records(("edema", "", masks(1, 0, size=4)[0])), truths)


def test_leave_one_out_never_shows_a_sample_its_own_image():
    table = [("a", "edema"), ("a", "edema"), ("b", "edema"), ("c", "nodule"), ("a", "nodule"), ("d", "device")]
    drawn = masks(len(table), 2)
    truths = [truth_of(name, "", mask, image) for (image, name), mask in zip(table, drawn, strict=True)]
    priors = LeftOutPriors(truths)
    maps, inside = list(priors.maps(truths)), drawn > 0
    np.testing.assert_allclose(maps[0], inside[2], rtol=1e-6)
    np.testing.assert_allclose(maps[2], inside[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(maps[4], inside[3], rtol=1e-6)
    np.testing.assert_allclose(maps[5], inside[:5].mean(axis=0), rtol=1e-6)  # no other device: all other images
    (alone,) = priors.maps(truths[:1])
    assert (alone == 0).all()
    assert "leave one image out" in priors.masks_from


def test_leave_one_out_leaves_the_whole_patient_out_and_counts_prompts_of_others():
    """Seven samples of one prompt, three of them of patient p; one of another prompt."""
    drawn = masks(8, 3)
    owners = ["p", "p", "p", "q", "r", "s", "t", "u"]
    prompts = ["left edema"] * 7 + ["right edema"]
    truths = [truth_of("edema", prompts[i], drawn[i], f"i{i}", owners[i]) for i in range(8)]
    priors, inside = LeftOutPriors(truths), drawn > 0
    maps = list(priors.maps(truths, by_prompt=True))
    np.testing.assert_allclose(maps[3], inside[[0, 1, 2, 4, 5, 6]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(maps[0], inside[3:].mean(axis=0), rtol=1e-6)  # four others: the category without p
    np.testing.assert_allclose(maps[7], inside[:7].mean(axis=0), rtol=1e-6)
    assert priors.rare(truths) == 4
    assert "leave one patient out" in priors.masks_from


def test_negatives_do_not_make_a_prompt_frequent():
    positives = [truth_of("edema", "edema", mask, f"i{k}") for k, mask in enumerate(masks(5, 4))]
    negatives = [negative(f"n{k}", "edema", 8) for k in range(6)]
    assert LeftOutPriors([*positives, *negatives]).rare([*positives, *negatives]) == 5  # each has four others


def test_the_partner_of_an_image_is_of_another_patient_where_there_is_one():
    def about(*patients):
        return [About(f"r{k}", name, {}) for k, name in enumerate(patients)]

    owners = ["p", "p", "p", "q", "q", "", ""]
    for seed in range(20):
        found = partners(np.array([0, 0, 1, 2, 3, 4, 5, 6]), about(*owners), seed)
        assert set(found) == set(range(7)) and set(found.values()) <= set(range(7))
        for row, partner in found.items():
            assert partner != row and (not owners[row] or owners[partner] != owners[row])
    assert partners(np.array([1, 3]), about(*owners)) == {1: 3, 3: 1}  # images without a sample are no partners
    assert partners(np.array([0, 1]), about("p", "p")) == {0: 1, 1: 0}  # no other patient: another image
    assert partners(np.array([4]), about(*owners)) == {}


def test_the_class_name_is_scored_against_all_findings_of_the_class_in_the_image():
    part = named_by_class(read_truths([record(1, ["nodule", "nodule", "edema"]), record(2, ["nodule"])], Drawing()))
    assert [truth.label_text for truth in part.truths] == ["nodule", "nodule", "edema", "nodule"]
    source = read_truths([record(1, ["nodule", "nodule", "edema"]), record(2, ["nodule"])], Drawing())
    own = [truth.mask > 0 for truth in source.truths]
    for k, expected in enumerate((own[0] | own[1], own[0] | own[1], own[2], own[3])):
        np.testing.assert_array_equal(part.truths[k].mask > 0, expected)
    assert [truth.id for truth in part.truths] == [truth.id for truth in source.truths]
