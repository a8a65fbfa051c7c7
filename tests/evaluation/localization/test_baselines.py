"""Location priors against means written out by hand."""

import numpy as np
import pytest

from afloc_jax.evaluation.localization.baselines import (
    ANY_CATEGORY,
    leave_one_out_prior,
    location_prior,
    prior_heatmaps,
)
from afloc_jax.evaluation.truth.sample import Truth


def masks(count, seed, size=8):
    return np.random.default_rng(seed).integers(0, 3, (count, size, size)).astype(np.uint8)


def test_the_prior_is_the_share_of_training_findings_that_cover_a_pixel():
    edema, effusion = masks(3, 0), masks(5, 1)
    priors = location_prior({"edema": iter(edema), "effusion": list(effusion), "never seen": []})
    assert set(priors) == {"edema", "effusion", ANY_CATEGORY}
    np.testing.assert_allclose(priors["edema"], (edema > 0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(priors["effusion"], (effusion > 0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(priors[ANY_CATEGORY], (np.concatenate([edema, effusion]) > 0).mean(axis=0), rtol=1e-6)


def test_a_category_without_training_masks_meets_the_prior_of_all_findings():
    priors = location_prior({"edema": masks(3, 0)})
    truths = [Truth(str(k), "", name, masks(1, k)[0]) for k, name in enumerate(("edema", "nodule"))]
    first, second = prior_heatmaps(priors, truths)
    np.testing.assert_array_equal(first, priors["edema"])
    np.testing.assert_array_equal(second, priors[ANY_CATEGORY])


def test_a_prior_needs_masks_of_one_size():
    with pytest.raises(ValueError, match="at least one training mask"):
        location_prior({"edema": []})
    with pytest.raises(ValueError, match=r"'effusion' have shape \(4, 4\), others \(8, 8\)"):
        location_prior({"edema": masks(1, 0), "effusion": masks(1, 0, size=4)})


def test_leave_one_out_never_shows_a_sample_its_own_image():
    table = [("a", "edema"), ("a", "edema"), ("b", "edema"), ("c", "nodule"), ("a", "nodule"), ("d", "device")]
    drawn = masks(len(table), 2)
    truths = [
        Truth(f"{image}#{k}", "", name, mask, image)
        for k, ((image, name), mask) in enumerate(zip(table, drawn, strict=True))
    ]
    maps = list(leave_one_out_prior(truths))
    inside = drawn > 0
    np.testing.assert_allclose(maps[0], inside[2], rtol=1e-6)
    np.testing.assert_allclose(maps[2], inside[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(maps[4], inside[3], rtol=1e-6)
    np.testing.assert_allclose(maps[5], inside[:5].mean(axis=0), rtol=1e-6)  # no other device: all other images
    (alone,) = leave_one_out_prior(truths[:1])
    assert (alone == 0).all()
