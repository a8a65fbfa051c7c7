"""The sweeps of configs/sweeps/: every one lists runs that differ, over the recipe that its head names."""

import json
import re

import pytest

from afloc_jax.training import recipes
from afloc_jax.training.config import load
from afloc_jax.training.sweep import load_runs
from configs.sweeps import backbone

# The runs of each ablation, the first of them, and a key that all of the sweep is about.
ABLATIONS = {
    "levels": (7, "report+sentence+word", "loss.weights.word"),
    "temperatures": (7, "as_they_are", "loss.contrast_temperature"),
    "contrast_group": (7, "whole_batch", "loss.contrast_group"),
    "sentences": (5, "subset", "data.sentences"),
    "merging": (6, "layers4_sum_pieces_sum", "model.text.merge_pieces"),
    "image_size": (5, "192_pixels", "model.image.input_size"),
    "backbone": (6, "resnet18", "model.image.backbone"),
    "text_encoder": (6, "bio_clinical_bert", "init_from"),
    "frozen_towers": (4, "none", "model.image.freeze"),
    "pooling": (4, "attention", "loss.region_sharpness"),
    "unit": (6, "caption_seed1", "loss.contrast_unit"),
    "objectives": (21, "published_seed1", "loss.objective"),
    "twins": (9, "negative_seed1", "loss.twins"),
    "hard_negatives": (9, "0_seed1", "loss.hard_negatives"),
}


def runs_of(name, **overrides):
    """The runs of a sweep, each checked as at its start, over the recipe of the command in its head."""
    file = recipes.find(name, "sweep")
    command = r"--config=(?:configs/)?(\w+)(?:\.py)? --sweep=(?:configs/sweeps/)?(\w+)(?:\.py)? --workdir=runs/"
    recipe = re.search(command, file.read_text())
    assert recipe[2] == name
    return load_runs(file, load(recipes.find(recipe[1], "config"), overrides))


@pytest.mark.parametrize("name", recipes.names("sweep"))
def test_runs_of_a_sweep_are_valid_and_differ(name):
    runs = runs_of(name)
    configs = {json.dumps(run.config.plain(), sort_keys=True) for run in runs}
    assert len(configs) == len(runs) > 1
    if name in ABLATIONS:
        count, first, key = ABLATIONS[name]
        assert (len(runs), runs[0].name) == (count, first)
        assert len({repr(run.overrides.get(key)) for run in runs}) > 1


def test_every_ablation_has_its_file():
    assert ABLATIONS.keys() <= {*recipes.names("sweep")}


def test_features_are_kept_for_the_runs_whose_image_tower_is_frozen():
    kept = {run.name: run.config.data.features for run in runs_of("frozen_towers", **{"data.features": "kept"})}
    assert kept == {"none": "", "text": "", "image": "kept", "image_and_text": "kept"}


def test_towers_of_a_sweep_start_from_the_weights_that_its_copy_names(monkeypatch):
    monkeypatch.setattr(backbone, "WEIGHTS", {"resnet50": "resnet50.pth"})
    monkeypatch.setattr(backbone, "TEXT", "bert/")
    starts = {run["name"]: run["init_from"] for run in backbone.sweep(None)}
    assert starts["resnet50"] == ("resnet50.pth", "bert/") and starts["vit_base"] == "bert/"
