"""Fine-tuning of encoder and head on records in memory."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afloc_jax.errors import UserError
from afloc_jax.evaluation.transfer.evaluate import fit_probes
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, read_splits
from afloc_jax.evaluation.transfer.subsets import draw
from afloc_jax.files import Path
from afloc_jax.training.failures import StopSignal
from afloc_jax.training.finetune import encoder
from afloc_jax.training.finetune.settings import FinetuneConfig
from data_pipelines.records import Record
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)

CONFIG = {
    "encoder": "trained",
    "transfer": {"fractions": [1.0]},
    "optimizer": {"lr": 3e-3, "b1": 0.9, "schedule": "constant", "clip_norm": 0.0},
    "training": {"batch_size": 8, "steps": 6, "validate_every": 3, "early_stopping": 0, "log_every": 1},
}


def films(count, seed):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        image = rng.integers(0, 60, (64, 64), dtype=np.uint8)
        labels = {name: int(value) for name, value in zip(("edema", "nodule"), rng.integers(0, 2, 2), strict=True)}
        image[:32] += np.uint8(90 * labels["edema"])
        image[:, :32] += np.uint8(90 * labels["nodule"])
        if number == 1:
            del labels["nodule"]  # unknown
        made.append(Record(f"film{seed}_{number}", image, [], 0, "", "PA", 64, 64, [], labels=labels))
    return made


@pytest.fixture(scope="module")
def splits():
    sources = {TRAIN: films(20, 1), VALIDATION: films(12, 2), TEST: films(12, 3)}
    return read_splits(sources, FinetuneConfig.read(CONFIG).settings)


def tuned(model, splits, out, **training):  # noqa: F811
    """The head of all labels, fine-tuned in the folder `out`."""
    config = FinetuneConfig.read({**CONFIG, "training": {**CONFIG["training"], **training}})
    [subset] = splits.subsets
    probe = fit_probes(model, splits, config.settings)[subset.name]
    with StopSignal() as stop:
        return probe, encoder.fine_tune(model, probe.linear, splits, subset, config, Path(out), stop)


def test_it_starts_as_the_linear_probe_and_learns(model, splits, tmp_path):  # noqa: F811
    before = jax.tree.map(np.array, model.variables)
    probe, fitted = tuned(model, splits, tmp_path, steps=6, head="linear_probe")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}
    assert sorted(losses) == [0, 3, 6] and fitted.chosen["step"] == min(losses, key=losses.get)
    assert fitted.chosen["validation loss"] == pytest.approx(min(losses.values()))
    first = fit_probes(model, splits, FinetuneConfig.read(CONFIG).settings)["100pct"]
    labels = splits.labelled[VALIDATION]
    features = model.backbone_features(np.stack([record.image for record in splits.sources[VALIDATION]]))["whole"]
    p = first.linear.probabilities(features)
    assert losses[0] == pytest.approx(encoder.label_loss(labels.labels, np.log(p / (1 - p))), rel=1e-3)
    assert fitted.probabilities.shape == (12, 2) and not np.allclose(fitted.probabilities, probe.fitted.probabilities)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, model.variables))


def test_a_step_is_that_of_optax_on_the_loss_of_known_labels(model, splits):  # noqa: F811
    network = encoder.trained_network(model, "float32")
    probe = fit_probes(model, splits, FinetuneConfig.read(CONFIG).settings)["100pct"]
    variables = encoder.first_variables(model, probe.linear, zero=True)
    assert not np.any(variables["params"]["head"]["kernel"])
    examples = encoder.Examples.of(splits.sources[TRAIN], splits.labelled[TRAIN], "pad")
    batch = examples.batch(0, 8, seed=1, augmented=False)
    step = encoder._train_step(network, optax.identity(), lambda _: 0.5, seed=1)
    state, loss = step(encoder.new_state(variables, optax.identity()), batch)
    assert float(loss) == pytest.approx(np.log(2))  # logits of zero
    variables = encoder.first_variables(model, probe.linear, zero=True)
    known = np.isfinite(batch["label"])
    whole, _ = encoder._features(
        network, variables["params"], variables["batch_stats"], jnp.asarray(batch["image"]), jax.random.key(0)
    )
    residual = np.where(known, 0.5 - np.nan_to_num(batch["label"]), 0) / known.sum()
    np.testing.assert_allclose(state.params["head"]["kernel"], -0.5 * np.asarray(whole).T @ residual, atol=1e-5)
    np.testing.assert_allclose(state.params["head"]["bias"], -0.5 * residual.sum(axis=0), atol=1e-6)


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_numbers(model, splits, tmp_path):  # noqa: F811
    _, whole = tuned(model, splits, tmp_path / "whole")
    tuned(model, splits, tmp_path / "parts", steps=3)
    _, resumed = tuned(model, splits, tmp_path / "parts")
    np.testing.assert_allclose(resumed.probabilities, whole.probabilities, atol=1e-6)
    assert dataclasses.asdict(resumed)["chosen"] == whole.chosen


def test_batches_depend_on_seed_and_step_and_an_epoch_has_each_record_once(splits):
    examples = encoder.Examples.of(splits.sources[TRAIN], splits.labelled[TRAIN], "pad")
    batches = [examples.batch(step, 5, seed=1, augmented=False) for step in range(4)]
    seen = np.concatenate([batch["image"] for batch in batches])
    assert len({image.tobytes() for image in seen}) == 20
    again = examples.batch(2, 5, seed=1, augmented=True)
    np.testing.assert_array_equal(again["image"], examples.batch(2, 5, seed=1, augmented=True)["image"])
    assert not np.array_equal(again["image"], batches[2]["image"])


def test_a_loss_that_is_not_finite_is_said(model, splits, tmp_path):  # noqa: F811
    subset = draw([""] * 20, [str(i) for i in range(20)], (1.0,), 0)[0]
    config = FinetuneConfig.read(CONFIG | {"optimizer": {"lr": 1e30, "name": "sgd", "clip_norm": 0.0}})
    probe = fit_probes(model, splits, config.settings)["100pct"]
    with StopSignal() as stop, pytest.raises(UserError, match=r"is not finite; lower config\.optimizer\.lr"):
        encoder.fine_tune(model, probe.linear, splits, subset, config, Path(tmp_path), stop)
