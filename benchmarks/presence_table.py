"""The tables of presence in docs/results.md: evaluations of several seeds of configs/demo.py, side by side.

    python -m benchmarks.presence_table runs/demo1 runs/demo2 runs/demo3

The program reads the summary.json that each run's own evaluation of presence (or `afloc evaluate MODEL --task presence
--out FOLDER`) wrote, and computes nothing but one share: the phrases that name nothing are 15 of two kinds, whose
shares of pairs judged present are averaged.
"""

import argparse
import json
from pathlib import Path

from benchmarks.demo_table import row

MEASURES = {
    "ece seen": "ECE, classes seen",
    "ece left out": "ECE, left out",
    "brier seen": "Brier, seen",
    "brier left out": "Brier, left out",
    "auc seen by name": "AUC by name alone",
    "fpr90 seen": "FPR at 90 % sensitivity, mean of classes",
    "fpr90 seen by name": "by name alone",
    "fpr90 seen by phrase": "by phrase",
}


def presence_of(folder: Path) -> dict:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("**/summary.json"))]
    of_presence = [summary for summary in found if summary.get("task") == "presence"]
    if len(of_presence) != 1:
        raise SystemExit(f"{folder}: {len(of_presence)} evaluations of presence, expected one")
    return of_presence[0]


def interval(value: dict) -> str:
    return f"{value['mean']:.3f} [{value['lower']:.3f}, {value['upper']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    runs = [presence_of(folder) for folder in given.runs]
    names = [folder.name for folder in given.runs]

    print(row(["", *names]))
    print(row(["---"] * (len(runs) + 1)))
    for key, title in MEASURES.items():
        shares = {f"{run['base_brier']['']:.3f}" for run in runs}
        of_shares = f" (the shares': {' / '.join(sorted(shares))})" if key.startswith("brier") else ""
        print(row([title + of_shares, *(interval(run["metrics"][key]["overall"]) for run in runs)]))
    nothing = [run["kept"] for run in runs]
    known, everyday = ([kept[kind] for kept in nothing] for kind in ("known_words", "everyday"))
    print(row(["phrases that name nothing: median, words of reports", *(f"{one['median']:.3f}" for one in known)]))
    print(row(["the same, everyday words", *(f"{one['median']:.3f}" for one in everyday)]))
    largest = [max(kind["highest"] for kind in kept.values()) for kept in nothing]
    print(row(["largest median of a phrase", *(f"{value:.3f}" for value in largest)]))
    judged = [sum(kind["judged_present"] for kind in kept.values()) / len(kept) for kept in nothing]
    print(row(["pairs of such a phrase and an image judged present", *(f"{100 * share:.1f} %" for share in judged)]))

    print("\nFalse-positive rate at 90 % sensitivity by class, names and phrases together:\n")
    print(row(["", "positives", *names]))
    print(row(["---"] * (len(runs) + 2)))
    for category in runs[0]["positives"]:
        values = [interval(run["metrics"]["fpr90 seen"]["per_category"][category]) for run in runs]
        print(row([category, str(runs[0]["positives"][category]), *values]))

    print("\nECE of the single classes with the pooled fit, for want of positives or negatives:\n")
    for name, run in zip(names, runs, strict=True):
        pooled = {c: run["metrics"]["ece seen"]["per_category"][c]["mean"] for c in run["positives"]}
        said = [f"{c} {value:.3f}" for c, value in pooled.items() if c not in run["own_fit"]]
        print(f"{name}: {', '.join(said) or 'none'}")


if __name__ == "__main__":
    main()
