"""Transfer from records to summary, tables, page and card."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.run import card_tables
from afloc_jax.evaluation.task import Models
from afloc_jax.evaluation.transfer.evaluate import evaluate_transfer
from afloc_jax.evaluation.transfer.settings import TransferSettings
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, open_splits, read_splits
from data_pipelines.records import Record
from tests.evaluation.discs import Checker
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)

SIDE = 224


def films(count, seed):
    """Squares, two of each patient. "left" and "right" are bright corners; "both" is said of no film."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        image = rng.integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
        left, right = (int(value) for value in rng.integers(0, 2, 2))
        image[:112, :112] += np.uint8(90 * left)
        image[:112, 112:] += np.uint8(90 * right)
        labels = {"edema": left, "nodule": -1 if number == 0 else right, "fracture": 0}
        patient = f"patient{seed}_{number // 2}"
        made.append(Record(f"film{seed}_{number}", image, [], 0, patient, "PA", SIDE, SIDE, [], labels=labels))
    return made


@pytest.fixture(scope="module")
def sources():
    return {TRAIN: films(32, 1), VALIDATION: films(16, 2), TEST: films(24, 3)}


@pytest.fixture(scope="module")
def result(model, sources, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("transfer")
    settings = TransferSettings(name="films", fractions=(0.25, 1.0), bootstrap=50)
    return out, evaluate_transfer(Models(lambda: model), read_splits(sources, settings), out, settings)


def test_numbers_are_those_of_the_tables_of_each_head(result):
    out, found = result
    assert [(share.title, share.patients, share.records) for share in found.shares] == [
        ("25 %", 4, 8),
        ("100 %", 16, 32),
    ]
    assert list(found.n_per_category) == ["edema", "nodule"] and found.n_per_category["nodule"] == 23
    for system, metrics in found.systems.items():
        for share in found.shares:
            with open(out / f"{system}_{share.name}" / "per_sample.csv", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["label"]]
            values = metrics[f"auc {share.name}"]
            for name in found.n_per_category:
                of = [(float(row["label"]), float(row["probability"])) for row in rows if row["category"] == name]
                assert values.per_category[name].mean == pytest.approx(roc_auc_score(*zip(*of, strict=True)))
            assert values.overall.lower <= values.overall.mean <= values.overall.upper
            mine, other = found.metrics[f"auc {share.name}"], found.baselines["untrained"].metrics[f"auc {share.name}"]
            assert found.differences[f"auc {share.name}"].overall.mean == pytest.approx(
                mine.overall.mean - other.overall.mean
            )
    assert found.account.bootstrap["unit"] == "patient"
    assert found.metrics["auc 100pct"].overall.mean > 0.9  # bright corners can be seen with random weights


def test_the_page_and_the_card_show_them(result):
    out, found = result
    page = write_report(out).read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.fetched == []
    for share in found.shares:
        assert f"{found.metrics[f'auc {share.name}'].overall.mean:.3f}" in page
    summary = json.loads((out / "summary.json").read_text())
    [table] = card_tables({"films": summary})
    assert table["columns"] == ["data set", "samples", "AUC, 100 %"]
    assert [row[0] for row in table["rows"]] == ["films", "films: random weights"]
    assert "| **all classes** | model less untrained |" in (out / "summary.md").read_text()


def test_uncertain_labels_are_unknown_or_those_of_the_competition(sources):
    plain = read_splits(sources, TransferSettings(name="films", classes=("edema", "nodule"), fractions=(1.0,)))
    assert np.isnan(plain.labelled[TEST].labels[0, 1])
    edema = [Record(**{**vars(film), "labels": {**film.labels, "edema": -1}}) for film in sources[TRAIN][:1]]
    given = {**sources, TRAIN: edema + sources[TRAIN][1:]}
    mapped = read_splits(given, TransferSettings(name="films", uncertain="chexpert", fractions=(1.0,)))
    assert mapped.labelled[TRAIN].labels[0, 0] == 1  # present, as GLoRIA has it
    assert np.isnan(mapped.labelled[TEST].labels[0, 1])  # no class of the competition


def test_labels_that_cannot_be_learned_are_refused_in_one_line(sources):
    bare = {part: [Record(**{**vars(film), "labels": {}}) for film in some] for part, some in sources.items()}
    with pytest.raises(UserError, match="no record has a label or a finding"):
        read_splits(bare, TransferSettings(name="films"))
    with pytest.raises(UserError, match="hold no positive or no negative of 'fracture'; leave the class out"):
        read_splits(sources, TransferSettings(name="films", classes=("fracture",)))
    with pytest.raises(UserError, match=r"6.25 % of the labels .* hold no (positive|negative) of"):
        read_splits(sources, TransferSettings(name="films", fractions=(0.0625,), subset_seed=1))
    with pytest.raises(UsageError, match="training, validation and test must differ"):
        open_splits(TransferSettings(name="films", directory="data", split="train"))
    with pytest.raises(UsageError, match=r"fractions = .* must be different shares, each greater than 0 and at most 1"):
        TransferSettings(name="films", fractions=(0.0, 1.0))
