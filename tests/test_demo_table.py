"""The tables of the demo: their baselines, and what is called a ceiling."""

import json
import sys

import pytest

from benchmarks import demo_table

CLASSES = ("edema", "nodule")


def summary(pointing, iou, baselines=()):
    """A summary with these means of edema and nodule."""
    both = {"pointing": pointing, "iou": iou, "dice": iou, "cnr": iou}
    metrics = {
        name: {
            "overall": {"mean": sum(means) / 2, "lower": 0.0, "upper": 1.0},
            "per_category": {c: {"mean": mean} for c, mean in zip(CLASSES, means, strict=True)},
        }
        for name, means in both.items()
    }
    return {"metrics": metrics, "baselines": dict(baselines), "bootstrap": {"unit": "image"}}


def write(folder, content, **files):
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "summary.json").write_text(json.dumps(content))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """Two seeds, whose means are 0.6 and 0.8 in pointing, 0.3 and 0.5 in IoU, with all baselines.

    The untrained networks of the seeds differ in IoU, by 0.02.
    """
    found = []
    for seed, shift in ((1, -0.1), (2, 0.1)):
        weak = {name: summary((0.1 + 0.01 * k, 0.2), (0.1, 0.1)) for k, name in enumerate(demo_table.BASELINES)}
        weak["untrained"] = summary((0.14, 0.2), (0.1 + shift / 10, 0.1 + shift / 10))
        content = summary((0.6 + shift, 0.8 + shift), (0.3 + shift, 0.5 + shift), weak)
        how = {"config": {"seed": seed}, "finished": {"training_seconds": 300}}
        found.append(write(tmp_path / f"run{seed}", content, **how))
        beside = tmp_path / f"run{seed}" / "evaluation" / "presence"
        beside.mkdir()
        (beside / "summary.json").write_text(json.dumps({"task": "presence"}))
    return found


def printed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo_table", *arguments])
    demo_table.main()
    return capsys.readouterr().out


def test_every_baseline_has_a_row_and_a_column(runs, monkeypatch, capsys):
    said = printed(runs, monkeypatch, capsys)
    for k, title in enumerate(demo_table.BASELINES.values()):
        overlap = "0.100 (0.090 / 0.110)" if title == "untrained" else "0.100"
        assert f"| {title} | {(0.3 + 0.01 * k) / 2:.3f} | {overlap} |" in said
        assert f" {title} |" in said.split("| pointing game | model |")[1]
    assert "| edema | 0.600 (0.500 / 0.700) | 0.100 | 0.110 |" in said
    assert "intervals draw images" in said and "ceiling" not in said


@pytest.mark.parametrize(
    ("pointing", "iou", "stopped", "named"),
    [
        ((0.6, 0.8), (0.3, 0.5), True, True),
        ((0.9, 0.9), (0.9, 0.9), False, False),  # cut off while it still improved
        ((0.9, 0.9), (0.9, 0.9), None, False),  # a run that does not say whether it stopped improving
        ((0.59, 0.95), (0.9, 0.9), True, False),  # the model points better at edema
        ((0.9, 0.9), (0.9, 0.49), True, False),  # the model has a better IoU of nodules
    ],
)
def test_supervised_training_is_a_ceiling_only_if_it_ended_and_no_class_is_better(
    pointing, iou, stopped, named, runs, tmp_path, monkeypatch, capsys
):
    files = {} if stopped is None else {"supervised": {"stopped_improving": stopped}}
    folder = write(tmp_path / "top", summary(pointing, iou), **files)
    said = printed([*runs, "--ceiling", folder], monkeypatch, capsys)
    assert ("| ceiling |" in said) == named
    assert ("supervised, no ceiling" in said) != named
