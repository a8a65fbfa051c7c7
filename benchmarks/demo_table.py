"""The three tables of the demo in docs/results.md: several seeds of configs/demo.py, with baselines and the ceiling.

    python -m benchmarks.demo_table runs/demo runs/demo2 runs/demo3 --ceiling runs/ceiling

The program reads the files of the runs and of `benchmarks.demo_ceiling`, and computes only means over the runs.
"""

import argparse
import json
from pathlib import Path

import numpy as np

MEASURES = {"pointing": "pointing game", "iou": "IoU", "dice": "Dice", "cnr": "CNR"}


def summary_of(folder: Path) -> dict:
    found = sorted(folder.glob("evaluation/**/summary.json"))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} evaluations, expected one")
    return json.loads(found[0].read_text())


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--ceiling", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    runs, ceiling = [summary_of(folder) for folder in given.runs], summary_of(given.ceiling)
    prior, untrained = (runs[0]["baselines"][name]["metrics"] for name in ("location_prior", "untrained"))

    seeds = [f"seed {json.loads((folder / 'config.json').read_text())['seed']}" for folder in given.runs]
    print(row(["", *seeds, "mean"]))
    print(row(["---"] * (len(seeds) + 2)))
    beside = []
    for key, name in MEASURES.items():
        overall = [run["metrics"][key]["overall"] for run in runs]
        mean, top = np.mean([one["mean"] for one in overall]), ceiling["metrics"][key]["overall"]["mean"]
        cells = [f"{one['mean']:.3f} [{one['lower']:.3f}, {one['upper']:.3f}]" for one in overall]
        others = [mean, prior[key]["overall"]["mean"], untrained[key]["overall"]["mean"], top]
        print(row([name, *cells, f"{mean:.3f}"]))
        beside.append([name, *(f"{value:.3f}" for value in others), f"{mean / top:.2f}"])
    seconds = [json.loads((folder / "finished.json").read_text())["training_seconds"] for folder in given.runs]
    print(row(["training", *(f"{value:.0f} s" for value in seconds), ""]))

    print("\n" + row(["", "mean", "location prior", f"untrained ({seeds[0]})", "ceiling", "mean / ceiling"]))
    print(row(["---"] * 6))
    print(*(row(cells) for cells in beside), sep="\n")

    print(
        "\n"
        + row(
            [
                "category",
                *(f"{MEASURES[key]}{of}" for key in ("pointing", "iou") for of in ("", ", prior", ", ceiling")),
            ]
        )
    )
    print(row(["---"] * 7))
    for category in runs[0]["metrics"]["iou"]["per_category"]:
        cells = [category]
        for key in ("pointing", "iou"):
            value, below, above = (
                [source[key]["per_category"][category]["mean"] for source in sources]
                for sources in ([run["metrics"] for run in runs], [prior], [ceiling["metrics"]])
            )
            each = " / ".join(f"{one:.3f}" for one in value)
            cells += [f"{np.mean(value):.3f} ({each})", f"{below[0]:.3f}", f"{above[0]:.3f}"]
        print(row(cells))


if __name__ == "__main__":
    main()
