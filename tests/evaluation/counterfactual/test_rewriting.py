"""Counterfactual prompts: sides, zones and negations of phantoms' prompts and of phrases from reports."""

import numpy as np
import pytest

from afloc_jax.evaluation.counterfactual.rewriting import SIDES, ZONES, negate
from data_pipelines.builders.phantom.generate import generate

PHANTOMS = {finding.prompt for index in range(40) for finding in generate(0, "test", index).findings}


@pytest.mark.parametrize(
    ("prompt", "other", "place"),
    [
        ("small left pleural effusion", "small right pleural effusion", 1),
        ("Moderate RIGHT-sided effusion.", "moderate left-sided effusion", 0),
        (
            "consolidation in the left lower lobe and left hilum",
            "consolidation in the right lower lobe and right hilum",
            1,
        ),
        ("RLL pneumonia", "lll pneumonia", 0),
        ("opacity in the right middle lobe", "opacity in the lingula", 0),
        ("RML collapse", "lingula collapse", 0),
        ("lingular atelectasis", "right middle lobe atelectasis", 1),
        ("nodule in the left lingula", "nodule in the right middle lobe", 1),
        ("left retrocardiac opacity", "right retrocardiac opacity", 1),
    ],
)
def test_the_other_side_is_named_by_every_word_of_a_side(prompt, other, place):
    found = SIDES.other(prompt)
    assert (found.text, found.place, found.why) == (other, place, "")


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("pleural effusion", "names no side"),
        ("cardiomegaly", "names no side"),
        ("leftover contrast", "names no side"),
        ("positive rt pcr", "names no side"),
        ("opacities with sparing of the left upper lobe", "names a side that has no opposite"),
        ("bilateral pleural effusions", "names both sides"),
        ("left greater than right effusions", "names both sides"),
        ("bibasilar atelectasis", "names both sides"),
        ("opacities in the right middle lobe and lingula", "names both sides"),
        ("enlarged right ventricle", "names a side that has no opposite"),
        ("mediastinal shift to the left", "names a side that has no opposite"),
        ("fluid in the right minor fissure", "names a side that has no opposite"),
    ],
)
def test_a_prompt_without_one_side_has_no_other_side(prompt, why):
    assert SIDES.other(prompt).why == why and not SIDES.other(prompt).text


@pytest.mark.parametrize(
    ("prompt", "other", "place"),
    [
        ("nodule in the left upper lobe", "nodule in the left lower lobe", 1),
        ("RUL consolidation", "rll consolidation", 1),
        ("small right apical pneumothorax", "small right basal pneumothorax", 1),
        ("basilar atelectasis", "apical atelectasis", 0),
        ("bibasilar atelectasis", "biapical atelectasis", 0),
        ("opacity at the lung bases", "opacity at the lung apices", 0),
        ("scarring at the right apex", "scarring at the right base", 1),
        ("opacities with a lower predominance", "opacities with an upper predominance", 0),
        ("an apical cap in a unilateral pneumothorax", "a basal cap in a unilateral pneumothorax", 1),
    ],
)
def test_the_other_zone_is_named_by_every_word_of_a_zone(prompt, other, place):
    found = ZONES.other(prompt)
    assert (found.text, found.place, found.why) == (other, place, "")


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("nodule in the right mid lung", "names no zone"),
        ("pleural-based mass", "names no zone"),
        ("superior segment of the lower lobe", "names both zones"),
        ("diffuse opacities, worse in the lower lobes", "names both zones"),
        ("catheter in the superior vena cava", "names a zone that has no opposite"),
        ("heart at the upper limits of normal", "names a zone that has no opposite"),
    ],
)
def test_a_prompt_without_one_zone_has_no_other_zone(prompt, why):
    assert ZONES.other(prompt).why == why and not ZONES.other(prompt).text


@pytest.mark.parametrize(
    ("prompt", "negated"),
    [
        ("small left pleural effusion", "no small left pleural effusion."),
        ("There is a small left effusion.", "no small left effusion."),
        ("Findings suggesting pneumonia.", "no pneumonia."),
        ("evidence of an opacity", "no opacity."),
        ("there is now a widespread opacity", "no widespread opacity."),
        ("the heart is enlarged", "heart is not enlarged"),
        ("there are bilateral effusions", "no bilateral effusions."),
    ],
)
def test_a_negation_says_no_or_not(prompt, negated):
    assert negate(prompt).text == negated


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("no pneumothorax", "is negated or normal already"),
        ("lungs are clear", "is negated or normal already"),
        ("small effusion without consolidation", "is negated or normal already"),
        ("Small effusion. Large heart.", "has several sentences"),
        ("chest radiograph shows an opacity", "has a verb that is not negated by these rules"),
        ("mass that has grown", "has a verb that is not negated by these rules"),
        ("there is", "has a verb that is not negated by these rules"),
    ],
)
def test_a_prompt_that_the_rules_cannot_negate_is_named(prompt, why):
    assert negate(prompt).why == why and not negate(prompt).text


def test_every_prompt_of_phantoms_is_rewritten_once_and_back():
    """Their prompts name at most one side or both, and one zone; none is a sentence."""
    assert len(PHANTOMS) > 30
    for prompt in PHANTOMS:
        words = set(prompt.split())
        one_side = len(words & {"left", "right"}) == 1
        assert bool(SIDES.other(prompt).text) == one_side, prompt
        assert bool(ZONES.other(prompt).text) == bool(words & {"upper", "lower", "apical", "basal"}), prompt
        assert negate(prompt).text == f"no {prompt}."
        for places in (SIDES, ZONES):
            other = places.other(prompt)
            if other.text:
                back = places.other(other.text)
                assert (back.text, back.place) == (prompt, 1 - other.place)
                changed = np.array(prompt.split()) != np.array(other.text.split())
                assert changed.sum() == 1
