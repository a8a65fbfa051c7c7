"""IoU and pointing game of every sample, averaged over runs, as a table of systems for `afloc compare`."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

METRICS = ("iou", "pointing")
KEY = ("id", "patient", "category", "metric", "threshold")
Samples = Mapping[tuple[str, ...], float]


def means_of(tables: Sequence[Path], system: str = "", patients: dict[str, str] | None = None) -> Samples:
    """The mean over tables of each sample: per_sample.csv of runs or, for a `system`, their baselines.csv.

    Pseudonyms of a patient differ between directories of records, ids do not: `patients` has the patient of each id
    that was read before, and gets those of others.
    """
    values, known = defaultdict(list), {} if patients is None else patients
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                if line["metric"] in METRICS and line.get("system", "") == system:
                    line["patient"] = known.setdefault(line["id"], line["patient"])
                    values[tuple(line[name] for name in KEY)].append(float(line["value"]))
    return {key: float(np.mean(each)) for key, each in values.items()}


def write_systems(out: Path, systems: Mapping[str, Samples]) -> None:
    """Writes the table of systems."""
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["system", *KEY, "value"])
        for name, samples in systems.items():
            writer.writerows([name, *key, value] for key, value in samples.items())
