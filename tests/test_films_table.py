"""The table of real films: pooled masks, and the difference to the prior by patient."""

import csv
import sys

import pytest

from benchmarks import films_table

COLUMNS = ("id", "patient", "category", "metric", "threshold", "value")
CLASSES = ("pleural effusion", *["consolidation"] * 2, *["Ground glass opacity"] * 2)
VALUES = {"1": 0.5, "2": 0.7}  # of the masks of two runs; their priors are 0.2


@pytest.fixture
def runs(tmp_path):
    for run, value in VALUES.items():
        folder = tmp_path / run / "evaluation" / "COVID_lesions"
        folder.mkdir(parents=True)
        samples = [(f"{n}#0", f"p{n}", CLASSES[n]) for n in range(5)]
        rows = [(*sample, metric, "", 1.0) for sample in samples for metric in ("iou", "pointing", "cnr")]
        rows = [(*line[:5], value if line[2] != CLASSES[0] and line[3] == "iou" else 1.0) for line in rows]
        rows = [(line[0], f"{line[1]} of {run}", *line[2:]) for line in rows]  # each directory has its pseudonyms
        with (folder / "per_sample.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        with (folder / "baselines.csv").open("w", newline="") as file:
            others = [(name, *line[:5], 0.2) for name in ("location_prior", "untrained", "x") for line in rows]
            csv.writer(file).writerows([("system", *COLUMNS), *others])
    return tmp_path


def test_seeds_are_averaged_and_effusion_is_not_counted(runs, monkeypatch, capsys):
    folders = " ".join(str(runs / run) for run in VALUES)
    monkeypatch.setattr(sys, "argv", ["films_table", f"model={folders}", "--out", str(runs / "out")])
    films_table.main()
    said = capsys.readouterr().out
    expected = "model | 0.600 | +0.400 [+0.400, +0.400] | 1.000 | +0.800 [+0.800, +0.800] |"
    assert f"| both (4) | {expected}" in said and f"| consolidation (2) | {expected}" in said
    assert "| both (4) | prior of other patients | 0.200 |  | 0.200 |  |" in said
    assert (runs / "out/pooled/comparison.html").is_file() and "untrained" in said


def test_a_run_without_the_lesions_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["films_table", f"model={tmp_path}"])
    with pytest.raises(SystemExit, match="no scores of the lesions"):
        films_table.main()
