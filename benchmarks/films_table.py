"""How well models point at the lesions of real films: several seeds of each, against places of other patients' lesions.

    python -m benchmarks.films_table "plain=runs/1/plain runs/2/plain" "varied=runs/1/varied runs/2/varied" [--out DIR]

Each argument is a name and the runs of configs/films.py that it stands for. IoU (mean over thresholds) and pointing
game of every mask are averaged over the runs. The table has the means over the masks of ground glass opacity and
consolidation together, and of each class; the difference to the prior of each mask, which is the mean mask of the
class in other patients, has an interval of resampled patients. Pleural effusion, of which there are two masks, is
shown in the page that is written to DIR alone.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from afloc_jax.evaluation.comparison.systems import Systems, compare_systems
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from benchmarks.demo_table import row
from benchmarks.sample_means import KEY, Samples, means_of, write_systems

EVALUATION = "COVID_lesions"  # the folder of that title
COUNTED = ("consolidation", "ground glass opacity")
BOTH = "both"
PRIOR = "prior of other patients"
UNTRAINED = "untrained"
METRICS = {"IoU": "iou", "pointing game": "pointing"}
CATEGORY = KEY.index("category")


def systems_of(runs: dict[str, list[Path]]) -> dict[str, Samples]:
    """The samples of each group of runs, of the prior, and of the untrained networks of the first group."""
    tables = {name: [_scores(run) / "per_sample.csv" for run in folders] for name, folders in runs.items()}
    first = [table.with_name("baselines.csv") for table in next(iter(tables.values()))]
    patients: dict[str, str] = {}
    baselines = {PRIOR: "location_prior", UNTRAINED: "untrained"}
    systems = {name: means_of(first, baseline, patients) for name, baseline in baselines.items()}
    return systems | {name: means_of(each, patients=patients) for name, each in tables.items()}


def _scores(run: Path) -> Path:
    folder = run / "evaluation" / EVALUATION
    if not (folder / "per_sample.csv").is_file():
        raise SystemExit(f"{folder}: no scores of the lesions")
    return folder


def pooled(samples: Samples) -> Samples:
    """The samples of the counted classes, as one class."""
    return {
        (*key[:CATEGORY], BOTH, *key[CATEGORY + 1 :]): value
        for key, value in samples.items()
        if key[CATEGORY].lower() in COUNTED
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="NAME=RUNS", help="a name, and workdirs separated by blanks")
    parser.add_argument("--out", type=Path, default=Path("films"), help="folder of the comparisons")
    given = parser.parse_args()
    runs = {
        name: [Path(run) for run in folders.split()] for name, _, folders in (g.partition("=") for g in given.groups)
    }
    systems = systems_of(runs)
    given.out.mkdir(parents=True, exist_ok=True)
    print(row(["masks", "system", *(f"{title}{of}" for title in METRICS for of in ("", " minus the prior"))]))
    print(row(["---"] * 6))
    for part, own in {"pooled": pooled, "classes": lambda samples: samples}.items():
        table = given.out / f"{part}.csv"
        write_systems(table, {name: own(samples) for name, samples in systems.items()})
        result = compare_systems([table], given.out / part, Bootstrap(5000, unit="patient"), against=PRIOR)
        for line in lines_of(result, (BOTH,) if part == "pooled" else COUNTED):
            print(row(line))
    print(f"\npages: {given.out}/pooled, {given.out}/classes")


def lines_of(result: Systems, categories: Sequence[str]) -> Iterator[list[str]]:
    """The rows of the table: of each class, every system."""
    for category in categories:
        for system in result.systems:
            cells, n = [], 0
            for metric in METRICS.values():
                chosen = (metric, category)
                means = [m for m in result.means if m.system == system and (m.metric, m.category.lower()) == chosen]
                cells += [f"{means[0].mean:.3f}"]
                n = means[0].n
                rows = [row for d in result.differences if d.system == system for row in d.rows]
                found = [row for row in rows if (row.metric, row.category.lower()) == chosen]
                cells += [f"{r.difference:+.3f} [{r.lower:+.3f}, {r.upper:+.3f}]" for r in found] or [""]
            yield [f"{category} ({n})", system, *cells]


if __name__ == "__main__":
    main()
