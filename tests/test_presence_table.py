"""The tables of presence of several seeds: every cell is its run's, and only evaluations of presence are taken."""

import json
import sys

import pytest

from benchmarks import presence_table


def value(mean):
    return {"mean": mean, "lower": mean - 0.01, "upper": mean + 0.01}


def presence(shift):
    """An evaluation of two classes; the k-th measure is k/100 + shift overall, and a class adds 0.2 or 0.4."""
    metrics = {}
    for k, key in enumerate(presence_table.MEASURES):
        classes = {"edema": value(k / 100 + shift + 0.2), "nodule": value(k / 100 + shift + 0.4)}
        metrics[key] = {"overall": value(k / 100 + shift), "per_category": classes}
    kept = {
        "known_words": {"median": 0.001, "highest": 0.02 + shift, "judged_present": 0.01},
        "everyday": {"median": 0.004, "highest": 0.03, "judged_present": 0.02},
    }
    positives = {"edema": 54, "nodule": 70}
    base = {"": 0.155, "edema": 0.1, "nodule": 0.2}
    return {
        "task": "presence", "metrics": metrics, "kept": kept, "positives": positives, "base_brier": base,
        "own_fit": ["nodule"],
    }  # fmt: skip


def write(folder, name, content):
    (folder / "evaluation" / name).mkdir(parents=True)
    (folder / "evaluation" / name / "summary.json").write_text(json.dumps(content))


def printed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["presence_table", *map(str, arguments)])
    presence_table.main()
    return capsys.readouterr().out


def test_each_cell_is_that_of_its_run(tmp_path, monkeypatch, capsys):
    for name, shift in (("one", 0.0), ("two", 0.1)):
        write(tmp_path / name, "maps", {"metrics": {}})
        write(tmp_path / name, "presence", presence(shift))
    said = printed([tmp_path / "one", tmp_path / "two"], monkeypatch, capsys)
    assert "| ECE, classes seen | 0.000 [-0.010, 0.010] | 0.100 [0.090, 0.110] |" in said
    assert "| Brier, seen (the shares': 0.155) | 0.020 [0.010, 0.030] | 0.120 [0.110, 0.130] |" in said
    assert "| by name alone | 0.060 [0.050, 0.070] | 0.160 [0.150, 0.170] |" in said
    assert "| largest median of a phrase | 0.030 | 0.120 |" in said
    assert "| pairs of such a phrase and an image judged present | 1.5 % | 1.5 % |" in said
    assert "| nodule | 70 | 0.450 [0.440, 0.460] | 0.550 [0.540, 0.560] |" in said
    assert "one: edema 0.200\ntwo: edema 0.300\n" in said


@pytest.mark.parametrize("names", [[], ["one", "two"]])
def test_a_folder_without_one_evaluation_of_presence_is_refused(names, tmp_path, monkeypatch, capsys):
    write(tmp_path, "maps", {"metrics": {}})
    for name in names:
        write(tmp_path, name, presence(0.0))
    with pytest.raises(SystemExit, match=f"{len(names)} evaluations of presence, expected one"):
        printed([tmp_path], monkeypatch, capsys)
