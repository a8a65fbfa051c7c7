"""The three stages of configs/films.py: each starts from the one before, with the text encoder of the first."""

import itertools

import jax
import numpy as np
import pytest

from afloc_jax.errors import UsageError
from afloc_jax.training import recipes
from afloc_jax.training.config import load
from afloc_jax.weights.folder import load_model
from configs import films
from tests.training.conftest import changed, train
from tests.training.test_recipes import TINY

SHORT = {**TINY, "model.text.projection": 16, "model.image.options.widths": (4, 8, 8, 8), "data.max_tokens": 24}
SHORT |= {"training.steps": 2, "training.validate_every": 2, "training.batch_size": 8, "evaluation.calibrate": False}
SHORT |= {"model.image.options.stem_width": 4, "evaluation.datasets": (), "optimizer.warmup_steps": 1}
SHORT |= {"data.augment": False}  # records in memory have another size


def test_each_stage_starts_from_the_one_before_and_keeps_the_text_encoder(bert, memory, tmp_path):
    start, towers = str(bert[0]), []
    for stage in films.STAGES:
        config = changed(load(recipes.find("films", "config"), variant=stage), SHORT)
        config.init_from = start
        assert train(config, tmp_path / stage) == 0
        start = str(tmp_path / stage / "model")
        stored, variables, _ = load_model(start)
        towers.append(variables["params"])
        assert stored.architecture.text.bert["hidden_size"] == 16
    for before, after in itertools.pairwise(towers):
        jax.tree.map(np.testing.assert_array_equal, before["text_encoder"]["bert"], after["text_encoder"]["bert"])
        moved = jax.tree.map(
            lambda one, other: float(np.abs(one - other).max()), before["image_encoder"], after["image_encoder"]
        )
        assert max(jax.tree.leaves(moved)) > 0


def test_a_text_encoder_of_its_own_is_trained_in_every_stage(memory, tmp_path):
    own = {
        **SHORT,
        "model.text.projection": 0,
        "model.text.bert.hidden_size": 16,
        "model.text.bert.intermediate_size": 8,
    }
    start, towers = "", []
    for stage in films.STAGES:
        config = changed(load(recipes.find("films", "config"), variant=f"{stage},own"), own)
        assert not config.model.text.freeze and config.name == f"films_{stage}_own"
        config.init_from = start
        assert train(config, tmp_path / stage) == 0
        start = str(tmp_path / stage / "model")
        towers.append(load_model(start)[1]["params"]["text_encoder"])
    for before, after in itertools.pairwise(towers):
        moved = jax.tree.map(lambda one, other: float(np.abs(one - other).max()), before, after)
        assert max(jax.tree.leaves(moved)) > 0


def test_stages_differ_in_data_and_length_and_others_are_named():
    plain, varied, pairs = (films.get_config(stage) for stage in films.STAGES)
    assert plain.model == varied.model == pairs.model and plain.loss == varied.loss == pairs.loss
    assert plain.data.dataset == varied.data.dataset == "phantom" and pairs.data.dataset == "pairs"
    assert "varied" not in plain.data.builder and varied.data.builder.varied == 1
    assert plain.localization.similarity == "dot"
    own = films.get_config("varied,own")
    assert own.model.image == varied.model.image and own.model.text.bert.hidden_size == 128 and own.data == varied.data
    for wrong in ("varied,", "varied,other", ",own"):
        with pytest.raises(UsageError, match=rf"films.py:{wrong}: write one of plain, varied, pairs, or one with ,own"):
            load(recipes.find("films", "config"), variant=wrong)
    with pytest.raises(UsageError, match=r"films.py:none: write one of plain, varied, pairs"):
        load(recipes.find("films", "config"), variant="none")
