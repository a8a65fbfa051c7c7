"""A table of objectives: the runs of configs/sweeps/objectives.py, three seeds of each.

    python -m benchmarks.objectives_table runs/objectives [--out objectives.csv]
    afloc compare objectives.csv --against unit --out comparison

The first prints the means of the seeds: pointing game and IoU of maps, the AUC of present prompts against
counterfactual ones by the map's maximum (the mean of the kinds of change), two columns for the other side alone, and
the AUC of presence. It also writes the IoU and pointing game of every sample, averaged over the seeds, as a table of
systems. The second says how the objectives differ on the same samples, with intervals over patients.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.demo_table import mean_of, row
from benchmarks.sample_means import means_of, write_systems

KINDS = ("side", "zone", "negation", "absent_finding", "other_image")
# The title of a column, the evaluation that has it, and the metrics of which it is the mean.
COLUMNS = {
    "pointing game": ("maps", ("pointing",)),
    "IoU": ("maps", ("iou",)),
    "counterfactual AUC": ("counterfactuals", tuple(f"{kind} auc_maximum" for kind in KINDS)),
    "other side: AUC": ("counterfactuals", ("side auc_maximum",)),
    "points at the finding": ("counterfactuals", ("side stays",)),
    "presence AUC": ("presence", ("auc seen",)),
}


def values_of(run: Path) -> dict[str, float]:
    """The value of each column for one run."""
    found = {}
    for title, (evaluation, metrics) in COLUMNS.items():
        summary = json.loads((run / "evaluation" / evaluation / "summary.json").read_text())
        found[title] = float(np.mean([mean_of(summary, metric) for metric in metrics]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="working directory of the sweep")
    parser.add_argument("--out", type=Path, default=Path("objectives.csv"), help="table of samples to write")
    given = parser.parse_args()
    runs: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted(given.sweep.glob("*_seed*")):
        if all((folder / "evaluation" / evaluation / "summary.json").is_file() for evaluation, _ in COLUMNS.values()):
            runs[re.sub(r"_seed\d+$", "", folder.name)].append(folder)
    if not runs:
        raise SystemExit(f"{given.sweep}: no finished run of configs/sweeps/objectives.py")

    print(row(["objective", "seeds", *COLUMNS]))
    print(row(["---"] * (len(COLUMNS) + 2)))
    for name, folders in runs.items():
        each = [values_of(folder) for folder in folders]
        means = [np.array([values[title] for values in each]) for title in COLUMNS]
        cells = [f"{mean.mean():.3f} ({' / '.join(f'{value:.3f}' for value in mean)})" for mean in means]
        print(row([name, str(len(folders)), *cells]))

    tables = {name: [folder / "evaluation/maps/per_sample.csv" for folder in folders] for name, folders in runs.items()}
    write_systems(given.out, {name: means_of(each) for name, each in tables.items()})
    print(f"\nIoU and pointing game of every sample, averaged over the seeds: {given.out}")


if __name__ == "__main__":
    main()
