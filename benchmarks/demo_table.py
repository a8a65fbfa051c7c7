"""The tables of the demo in docs/results.md: several seeds of configs/demo.py, with baselines and supervised training.

    python -m benchmarks.demo_table runs/demo runs/demo2 runs/demo3 [--ceiling runs/ceiling]

The program reads the files of the runs and of `benchmarks.demo_ceiling`, and computes only means over the runs. The
supervised run is called a ceiling only if it was trained until it stopped improving, and if its pointing game and IoU
are at least the model's mean in every class.
"""

import argparse
import json
from pathlib import Path

import numpy as np

BASELINES = {
    "location_prior": "location prior",
    "prompt_prior": "prompt prior",
    "shuffled_image": "another image",
    "class_name": "class name alone",
    "untrained": "untrained",
}
MEASURES = {"pointing": "pointing game", "iou": "IoU", "dice": "Dice", "cnr": "CNR"}


def summary_of(folder: Path) -> dict:
    """The evaluation of a run's maps; that of presence, beside it, says its task."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("evaluation/**/summary.json"))]
    of_maps = [summary for summary in found if "task" not in summary]
    if len(of_maps) != 1:
        raise SystemExit(f"{folder}: {len(of_maps)} evaluations of maps, expected one")
    return of_maps[0]


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def mean_of(summary: dict, measure: str, category: str | None = None) -> float:
    """A mean of a summary, or of one of its baselines."""
    table = summary["metrics"].get(measure, {})
    part = table.get("overall") if category is None else table.get("per_category", {}).get(category)
    return float("nan") if part is None or part["mean"] is None else part["mean"]


def is_ceiling(supervised: dict, stopped: bool, runs: list[dict]) -> bool:
    """Whether a supervised run bounds the model: it stopped improving, and no class of the model is better."""
    classes = runs[0]["metrics"]["iou"]["per_category"]
    pairs = [(measure, name) for measure in ("pointing", "iou") for name in classes]
    ours = [np.mean([mean_of(run, *pair) for run in runs]) for pair in pairs]
    return stopped and all(mean_of(supervised, *pair) >= own for pair, own in zip(pairs, ours, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--ceiling", type=Path, metavar="FOLDER", help="folder that benchmarks.demo_ceiling wrote")
    given = parser.parse_args()
    runs = [summary_of(folder) for folder in given.runs]
    others = {
        title: [run["baselines"][name] for run in runs]
        for name, title in BASELINES.items()
        if all(name in run["baselines"] for run in runs)
    }
    if given.ceiling:
        supervised, about = summary_of(given.ceiling), given.ceiling / "supervised.json"
        stopped = about.is_file() and json.loads(about.read_text())["stopped_improving"]
        others["ceiling" if is_ceiling(supervised, stopped, runs) else "supervised, no ceiling"] = [supervised]

    seeds = [f"seed {json.loads((folder / 'config.json').read_text())['seed']}" for folder in given.runs]
    print(row(["", *seeds, "mean"]))
    print(row(["---"] * (len(seeds) + 2)))
    for key, name in MEASURES.items():
        overall = [run["metrics"][key]["overall"] for run in runs]
        cells = [f"{one['mean']:.3f} [{one['lower']:.3f}, {one['upper']:.3f}]" for one in overall]
        print(row([name, *cells, f"{np.mean([one['mean'] for one in overall]):.3f}"]))
    seconds = [json.loads((folder / "finished.json").read_text())["training_seconds"] for folder in given.runs]
    print(row(["training", *(f"{value:.0f} s" for value in seconds), ""]))

    print(f"\nMeans of the seeds (each seed); intervals draw {runs[0]['bootstrap']['unit']}s.\n")
    print(row(["", *MEASURES.values()]))
    print(row(["---"] * (len(MEASURES) + 1)))
    for title, those in {"model": runs, **others}.items():
        print(row([title, *(several([mean_of(one, key) for one in those]) for key in MEASURES)]))

    for key in ("pointing", "iou"):
        print("\n" + row([MEASURES[key], "model", *others]))
        print(row(["---"] * (len(others) + 2)))
        for category in runs[0]["metrics"]["iou"]["per_category"]:
            means = [[mean_of(one, key, category) for one in those] for those in others.values()]
            own = several([mean_of(run, key, category) for run in runs])
            print(row([category, own, *(f"{np.mean(each):.3f}" for each in means)]))


def several(values: list[float]) -> str:
    """The mean, and the values where they differ: priors do not depend on the seed."""
    shown = [f"{value:.3f}" for value in values]
    return f"{np.mean(values):.3f}" + (f" ({' / '.join(shown)})" if len(set(shown)) > 1 else "")


if __name__ == "__main__":
    main()
