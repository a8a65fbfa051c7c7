"""The table of objectives: means over seeds, and a table of samples that `afloc compare` reads."""

import csv
import json
import sys

import numpy as np
import pytest

from benchmarks import objectives_table
from benchmarks.objectives_table import COLUMNS

SAMPLES = ("id", "patient", "category", "metric", "threshold", "value")


@pytest.fixture
def sweep(tmp_path):
    """Two finished seeds of "unit", whose metrics are 0.1 and 0.3, one of "hard", and one that is not scored yet."""
    for name, value in (("unit_seed1", 0.1), ("unit_seed2", 0.3), ("hard_seed1", 0.5), ("hard_seed2", None)):
        run = tmp_path / name
        run.mkdir()
        (run / "finished.json").write_text("{}")
        if value is None:
            continue
        for evaluation in ("maps", "counterfactuals", "presence"):
            metrics = {
                m: {"overall": {"mean": value}} for where, of in COLUMNS.values() for m in of if where == evaluation
            }
            (run / "evaluation" / evaluation).mkdir(parents=True)
            (run / "evaluation" / evaluation / "summary.json").write_text(json.dumps({"metrics": metrics}))
        with (run / "evaluation/maps/per_sample.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(SAMPLES)
            writer.writerows(["a#0", "a", "edema", metric, "", value] for metric in ("iou", "pointing", "cnr"))
    return tmp_path


def test_seeds_are_averaged_in_the_table_and_for_every_sample(sweep, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["objectives_table", str(sweep), "--out", str(sweep / "out.csv")])
    objectives_table.main()
    said = capsys.readouterr().out
    assert f"| unit | 2 |{' 0.200 (0.100 / 0.300) |' * len(COLUMNS)}" in said
    assert f"| hard | 1 |{' 0.500 (0.500) |' * len(COLUMNS)}" in said
    with (sweep / "out.csv").open(newline="") as file:
        rows = {(row["system"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows.keys() == {(system, metric) for system in ("unit", "hard") for metric in ("iou", "pointing")}
    np.testing.assert_allclose([rows["unit", "iou"], rows["hard", "pointing"]], [0.2, 0.5])


def test_a_sweep_without_a_finished_run_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["objectives_table", str(tmp_path)])
    with pytest.raises(SystemExit, match="no finished run"):
        objectives_table.main()
