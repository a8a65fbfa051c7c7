"""Classification, retrieval and prompt robustness of a tiny model on phantoms, and their metrics on known numbers."""

import csv
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification import metrics as class_scores
from afloc_jax.evaluation.classification.evaluate import evaluate_classification
from afloc_jax.evaluation.classification.settings import ClassificationSettings
from afloc_jax.evaluation.labelled import embed_records, read_labelled
from afloc_jax.evaluation.retrieval import evaluate as retrieval
from afloc_jax.evaluation.retrieval.evaluate import evaluate_retrieval
from afloc_jax.evaluation.retrieval.settings import RetrievalSettings
from afloc_jax.evaluation.robustness.evaluate import evaluate_robustness, spread
from afloc_jax.evaluation.robustness.settings import RobustnessSettings
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.inference.class_prompts import PromptSet
from data_pipelines.images import crop_to_square
from data_pipelines.prepared import open_source
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)

QUICK = Bootstrap(resamples=60)
how = partial(ClassificationSettings, bootstrap=60)
SIZES = {"train": 0, "validation": 16, "test": 30, "seed": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def source(data):
    return open_source("phantom", data, "test", builder=SIZES)


@pytest.fixture(scope="module")
def validation(data):
    return open_source("phantom", data, "validation", builder=SIZES)


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Labels


def test_labels_are_the_findings_of_the_records(source):
    found = read_labelled(source, ["Pleural_Effusion", "no finding"])
    for i, record in enumerate(source):
        labels = {finding.label for finding in record.findings}
        assert list(found.labels[i]) == ["pleural effusion" in labels, not labels]
    everything = read_labelled(source)
    single = everything.exclusive()
    for i, record in enumerate(source):
        labels = {finding.label for finding in record.findings}
        assert single[i] == (everything.classes.index(*labels) if len(labels) == 1 else -1)


def test_a_table_of_labels_leaves_out_what_it_does_not_name(source, tmp_path):
    table = tmp_path / "labels.csv"
    ids = [record.id for record in source]
    table.write_text(f"id,Edema,mass\n{ids[3]},1,\n{ids[5]},0,-1\n{ids[7]},1,0\n")
    found = read_labelled(source, (), table)
    assert found.ids == (ids[3], ids[5], ids[7]) and found.left_out == 27
    np.testing.assert_array_equal(found.labels, [[1, np.nan], [0, np.nan], [1, 0]])
    assert list(found.exclusive()) == [-1, -1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,edema\na,1\n", "needs a column id"),
        ("id,edema\nx,maybe\n", "row 2, column edema: neither 1 nor 0"),
        ("id,edema\nx,1\nx,0\n", "row 3, column id: the same as in row 2$"),
        ("id,edema\nunknown,1\n", "no record is named"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(source, tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        read_labelled(source, (), tmp_path / "labels.csv")
    with pytest.raises(UserError, match="no record is labelled 'gout'; the labels are"):
        read_labelled(source, ["gout"])


# Classification


def test_classification_writes_what_scikit_learn_computes(model, source, validation, tmp_path):  # noqa: F811
    prompts = PromptSet(classes={"edema": ["mild edema", "severe edema"]})
    summary = evaluate_classification(
        model, source, tmp_path, how(classes=["edema", "nodule"], prompts=prompts), validation
    ).to_json()
    whole = model.embed_squares(np.stack([record.image for record in source])).whole
    expected = model.classify_embedded(np.asarray(whole), ["edema", "nodule"], prompts)
    rows = lines(tmp_path / "per_sample.csv")
    assert len(rows) == 60
    for c, name in enumerate(("edema", "nodule")):
        mine = [row for row in rows if row["category"] == name]
        truth, p = np.array([int(r["label"]) for r in mine]), np.array([float(r["probability"]) for r in mine])
        np.testing.assert_allclose(p, expected[:, c], atol=1e-5)
        value = {m: table["per_category"][name]["mean"] for m, table in summary["metrics"].items()}
        assert value["auc"] == pytest.approx(metrics.roc_auc_score(truth, p))
        assert value["brier"] == pytest.approx(metrics.brier_score_loss(truth, p))
        predicted = p >= summary["thresholds"][name]
        assert value["f1"] == pytest.approx(metrics.f1_score(truth, predicted))
        assert value["mcc"] == pytest.approx(metrics.matthews_corrcoef(truth, predicted))
        assert [int(r["predicted"]) for r in mine] == predicted.tolist()
        assert sum(row["n"] for row in summary["reliability"][name]) == 30
    both = [summary["metrics"]["auc"]["per_category"][name]["mean"] for name in ("edema", "nodule")]
    assert summary["metrics"]["auc"]["overall"]["mean"] == pytest.approx(np.mean(both))
    assert summary["thresholds_chosen_on"] == "16 validation records"
    assert summary["prompts"]["nodule"]["positive"] == ["Findings suggesting nodule."]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert "| nodule |" in (tmp_path / "summary.md").read_text()


def test_thresholds_come_from_validation_unless_compatible(model, source, validation, tmp_path):  # noqa: F811
    def chosen(validation=None, **options):
        settings = how(classes=["edema"], prompts=PromptSet(), **options)
        return evaluate_classification(model, source, tmp_path, settings, validation).to_json()

    tuned, release, plain = chosen(validation), chosen(compatible=True), chosen()
    assert plain["thresholds"]["edema"] == 0.5
    labels = [any(f.label == "edema" for f in record.findings) for record in source]
    p = np.array([float(row["probability"]) for row in lines(tmp_path / "per_sample.csv")])
    best = max(metrics.f1_score(labels, p >= t) for t in p)
    assert release["metrics"]["f1"]["overall"]["mean"] == pytest.approx(best)  # flattering: the best there is
    assert tuned["metrics"]["f1"]["overall"]["mean"] <= best
    whole = embed_records(model, validation, np.arange(16), "pad")
    scores = model.classify_embedded(whole, ["edema"], PromptSet())[:, 0]
    truth = [any(f.label == "edema" for f in record.findings) for record in validation]
    f1 = metrics.f1_score(truth, scores >= np.float32(tuned["thresholds"]["edema"]))
    assert f1 == pytest.approx(max(metrics.f1_score(truth, scores >= t) for t in scores))


def test_without_a_prompt_set_the_validation_records_say_how_to_ask(model, source, validation, tmp_path):  # noqa: F811
    summary = evaluate_classification(model, source, tmp_path, how(classes=["edema", "Nodule"]), validation).to_json()
    for name in ("edema", "Nodule"):
        asked = [f.prompt for record in validation for f in record.findings if f.label == name.lower()]
        assert summary["prompts"][name]["positive"] == list(dict.fromkeys(asked))
    assert summary["prompt_set"] == "own" and "none taken from scored ones" in summary["prompts_from"]
    rows = [row for row in lines(tmp_path / "per_sample.csv") if row["category"] == "edema"]
    own = PromptSet(classes={"edema": summary["prompts"]["edema"]["positive"]})
    expected = model.classify_embedded(embed_records(model, source, np.arange(30), "pad"), ["edema"], own)[:, 0]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected, atol=1e-6)
    for settings, known in ((how(classes=["edema"]), None), (how(classes=["edema"], compatible=True), validation)):
        plain = evaluate_classification(model, source, tmp_path, settings, known).to_json()
        assert plain["prompts"]["edema"]["positive"] == ["Findings suggesting edema."]
        assert plain["prompts_from"] == "Findings suggesting {class}."


def test_one_class_of_several_leaves_out_records_with_none_or_two(model, source, tmp_path):  # noqa: F811
    prompts = PromptSet(multiclass=True)
    summary = evaluate_classification(model, source, tmp_path, how(prompts=prompts)).to_json()
    single = [record for record in source if len({f.label for f in record.findings}) == 1]
    assert (summary["n"], summary["n_left_out"]) == (len(single), 30 - len(single))
    rows = lines(tmp_path / "per_sample.csv")
    p = np.array([float(row["probability"]) for row in rows]).reshape(len(single), -1)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    truth = np.array([int(row["label"]) for row in rows]).reshape(p.shape).argmax(axis=1)
    overall = {name: table["overall"]["mean"] for name, table in summary["metrics"].items()}
    assert overall["accuracy"] == pytest.approx(metrics.accuracy_score(truth, p.argmax(axis=1)))
    assert overall["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, p.argmax(axis=1)))


def test_intervals_by_patient_need_patients(model, source, tmp_path):  # noqa: F811
    by_patient = how(classes=["edema"], unit="patient")
    assert evaluate_classification(model, source, tmp_path, by_patient).account.bootstrap["unit"] == "patient"

    class Nameless:
        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            return type("Record", (), {**vars(source[index]), "patient": ""})

    with pytest.raises(UserError, match="30 of 30 samples name no patient"):
        evaluate_classification(model, Nameless(), tmp_path, by_patient)


def test_a_cropped_evaluation_sees_the_middle_of_the_image(model, source):  # noqa: F811
    cropped = embed_records(model, source, np.arange(3), "crop")
    squares = np.stack([crop_to_square(source[i].image, 224) for i in range(3)])  # phantoms are square: nothing to cut
    np.testing.assert_allclose(cropped, model.embed_squares(squares).whole, atol=1e-6)


def test_compatible_classification_is_cropped_unless_told_otherwise():
    assert ClassificationSettings(compatible=True).recorded()["framing"] == "crop"
    assert ClassificationSettings(compatible=True, framing="pad").recorded()["framing"] == "pad"
    assert ClassificationSettings().framed == RetrievalSettings(compatible=True).framed == "pad"
    with pytest.raises(UsageError, match="aggregation = 'median': must be one of mean, max"):
        ClassificationSettings(aggregation="median")


def test_unknown_labels_do_not_count_for_their_class():
    rng = np.random.default_rng(0)
    labels, p = (rng.random((40, 2)) < 0.5).astype(float), rng.random((40, 2))
    labels[:10, 1] = np.nan
    found = class_scores.binary_statistic(labels, p, p >= 0.5)(np.ones((1, 40)))[0]
    assert found[1, 0] == pytest.approx(metrics.roc_auc_score(labels[10:, 1], p[10:, 1]))
    assert found[0, 0] == pytest.approx(metrics.roc_auc_score(labels[:, 0], p[:, 0]))


# Retrieval


def test_recall_and_precision_equal_their_plain_definition():
    rng = np.random.default_rng(1)
    similarity, relevant = rng.random((12, 30)), rng.random((12, 30)) < 0.1
    relevant[4] = False
    found = retrieval.retrieval_scores(similarity, relevant, (1, 5, 40))
    for q in range(12):
        ranked = sorted(range(30), key=lambda i: -similarity[q, i])
        for k, top in enumerate((1, 5, 40)):
            hits = sum(relevant[q, i] for i in ranked[:top])
            expected = (float(hits > 0), hits / top) if relevant[q].any() else (np.nan, np.nan)
            np.testing.assert_allclose((found["recall"][q, k], found["precision"][q, k]), expected)


def test_a_collapsed_embedding_retrieves_nothing():
    found = retrieval.retrieval_scores(np.zeros((20, 20)), np.eye(20, dtype=bool), (1, 5))
    assert found["recall"].sum() == 0


def test_chance_is_that_of_random_orders():
    rng = np.random.default_rng(2)
    relevant = rng.random((40, 25)) < 0.2
    found = retrieval.chance(relevant, 5)
    misses = scipy.stats.hypergeom(25, relevant.sum(axis=1), 5).pmf(0)
    assert found["recall"] == pytest.approx(1 - misses.mean())
    assert found["precision"] == pytest.approx(relevant.mean())


def test_pairs_are_found_in_both_directions_and_equal_reports_are_equally_right(model, source, tmp_path):  # noqa: F811
    summary = evaluate_retrieval(model, source, tmp_path, RetrievalSettings(bootstrap=60)).to_json()
    texts = [". ".join(record.sentences) for record in source]
    images = np.asarray(model.embed_squares(np.stack([record.image for record in source])).whole)
    similarity = metrics.pairwise.cosine_similarity(images, model.embed_texts(texts).report)
    same = np.array(texts)[:, None] == np.array(texts)
    for direction, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        best = np.argsort(-scores, axis=1)[:, :5]
        hits = np.take_along_axis(same, best, axis=1)
        assert summary["metrics"][f"recall@5 {direction}"]["overall"]["mean"] == pytest.approx(hits.any(1).mean())
        assert summary["metrics"][f"precision@5 {direction}"]["overall"]["mean"] == pytest.approx(hits.mean())
    assert len(lines(tmp_path / "per_sample.csv")) == 30 * 12


def test_by_class_every_class_has_as_many_records(model, source, tmp_path):  # noqa: F811
    single = read_labelled(source)
    counts = {name: int((single.exclusive() == c).sum()) for c, name in enumerate(single.classes)}
    two = sorted(sorted(counts, key=lambda name: -counts[name])[:2])
    summary = evaluate_retrieval(
        model, source, tmp_path, RetrievalSettings(bootstrap=60, by_class=True, classes=two, per_class=2, tops=(1, 2))
    ).to_json()
    assert summary["n_per_category"] == dict.fromkeys(two, 2)
    assert summary["metrics"]["precision@1 image_to_text"]["chance"] == pytest.approx(0.5)
    labels = {record.id: {f.label for f in record.findings} for record in source}
    assert all(labels[row["id"]] == {row["category"]} for row in lines(tmp_path / "per_sample.csv"))
    with pytest.raises(UserError, match=r"only \d+ records have .* alone, 200 are wanted"):
        evaluate_retrieval(model, source, tmp_path, RetrievalSettings(bootstrap=60, by_class=True))


# Robustness


def test_spread_is_what_numpy_says():
    values = np.random.default_rng(3).random((4, 10))
    expected = [values.mean(1), values.std(1, ddof=1), values.min(1), values.max(1), np.ptp(values, axis=1)]
    np.testing.assert_allclose(spread(values), np.stack(expected, axis=1))


def test_robustness_scores_every_paraphrase(model, source, tmp_path):  # noqa: F811
    ways = PromptSet(classes={"edema": ["edema", "left edema", "right edema"], "nodule": ["nodule"]})
    summary = evaluate_robustness(model, source, tmp_path, RobustnessSettings(bootstrap=60, prompts=ways)).to_json()
    assert list(summary["spread"]["auc"]) == ["edema"]  # one way has no spread
    truth = [any(f.label == "edema" for f in record.findings) for record in source]
    rows = lines(tmp_path / "per_sample.csv")
    for k, text in enumerate(ways.classes["edema"]):
        p = [float(row["value"]) for row in rows if row["metric"] == f"probability {k}"]
        auc = summary["spread"]["auc"]["edema"]["per_paraphrase"][text]["mean"]
        assert auc == pytest.approx(metrics.roc_auc_score(truth, p))
        iou = [float(row["value"]) for row in rows if row["metric"] == f"iou {k}"]
        assert summary["spread"]["iou"]["edema"]["per_paraphrase"][text]["mean"] == pytest.approx(np.mean(iou))
    found = summary["spread"]["auc"]["edema"]
    assert found["range"]["mean"] == pytest.approx(found["highest"]["mean"] - found["lowest"]["mean"])
    assert summary["metrics"]["auc range"]["overall"] == found["range"], "of one class the mean over classes is its own"
    assert summary["left_out_classes"]["nodule"] == "has no paraphrases"


def test_wording_of_a_class_that_no_record_lacks_is_scored_where_it_is_annotated(model, source, tmp_path):  # noqa: F811
    """Data such as MS-CXR list only what is present: an AUC there is not, IoU there is."""
    present = [replace(record, labels={f.label: 1 for f in record.findings}) for record in source]
    ways = PromptSet(classes={"edema": ["edema", "left edema"]})
    summary = evaluate_robustness(model, present, tmp_path, RobustnessSettings(bootstrap=60, prompts=ways)).to_json()
    whole = evaluate_robustness(
        model, source, tmp_path / "whole", RobustnessSettings(bootstrap=60, prompts=ways)
    ).to_json()
    assert list(summary["spread"]) == ["iou"]
    assert summary["spread"]["iou"] == whole["spread"]["iou"]
    assert summary["left_out_classes"]["edema"] == "no AUC: no record is known to lack it"
    bare = [replace(record, findings=[]) for record in present]
    with pytest.raises(UserError, match="no record is known to lack a class"):
        evaluate_robustness(model, bare, tmp_path / "bare", RobustnessSettings(bootstrap=60, prompts=ways))


def test_the_mean_over_classes_is_drawn_with_the_classes(model, source, tmp_path):  # noqa: F811
    ways = PromptSet(classes={"edema": ["edema", "left edema", "right edema"], "nodule": ["nodule", "a nodule"]})
    how = {"interval": "percentile", "unit": "sample"}
    settings = RobustnessSettings(bootstrap=60, prompts=ways, classes=["edema", "nodule"], **how)
    summary = evaluate_robustness(model, source, tmp_path, settings).to_json()
    rows = lines(tmp_path / "per_sample.csv")
    ids = [record.id for record in source]
    weights = np.stack([np.bincount(row, minlength=30) for row in np.random.default_rng(0).integers(0, 30, (60, 30))])
    drawn = []
    for name, count in (("edema", 3), ("nodule", 2)):
        truth = np.array([any(f.label == name for f in record.findings) for record in source])
        aucs = []
        for k in range(count):
            of_phrase = [row for row in rows if (row["category"], row["metric"]) == (name, f"probability {k}")]
            assert [row["id"] for row in of_phrase] == ids
            p = np.array([float(row["value"]) for row in of_phrase])
            aucs.append([metrics.roc_auc_score(truth, p, sample_weight=w) for w in weights])
        drawn.append(np.mean(aucs, axis=0))
    found = summary["metrics"]["auc mean"]["overall"]
    limits = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    np.testing.assert_allclose([found["lower"], found["upper"]], limits, atol=1e-9)
    of_classes = [summary["spread"]["iou"][name]["deviation"]["mean"] for name in ("edema", "nodule")]
    assert summary["metrics"]["iou deviation"]["overall"]["mean"] == pytest.approx(np.mean(of_classes))
    assert summary["metrics"]["iou deviation"]["overall"]["lower"] is not None


# The command line


def test_evaluate_runs_every_task_and_compare_reads_their_results(folder, data, source, tmp_path, capsys):  # noqa: F811
    sizes = [flag for key, value in SIZES.items() for flag in ("--builder", f"{key}={value}")]
    call = ["evaluate", str(folder), "--dataset", "phantom", "--data", str(data), *sizes, "--bootstrap", "20"]
    for task, options in (("classification", ["--prompts", "chest"]), ("retrieval", ["--interval", "bca"])):
        assert main([*call, "--task", task, *options, "--out", str(tmp_path / task)]) == 0
        assert "30 samples" in capsys.readouterr().out
        out = str(tmp_path / f"{task} compared")
        assert main(["compare", str(tmp_path / task), str(tmp_path / task), "--out", out, "--bootstrap", "20"]) == 0
        assert "0.000 [0.000, 0.000]" in capsys.readouterr().out
    assert main([*call, "--task", "classification", "--prompts", "chests", "--out", str(tmp_path / "x")]) == 2
    assert "no set of that name" in capsys.readouterr().err
    wrong = ["--task", "classification", "--validation_split", "test", "--out", str(tmp_path / "x")]
    assert main([*call, *wrong]) == 2
    assert "flatters" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_settings_of_the_bootstrap_are_checked():
    with pytest.raises(UsageError, match="sample, patient"):
        Bootstrap(unit="hospital")
    with pytest.raises(UsageError, match="at least 1"):
        Bootstrap(resamples=0)
