"""Time of 1,000 bootstrap resamples of 10,000 samples: means and AUC, percentile and BCa, and scipy.stats.bootstrap.

    python -m benchmarks.bootstrap [--samples 10000] [--resamples 1000] [--categories 8] [--repeats 5] [--scipy]

`mean` has one category and one column, `table` has the columns and categories of a localisation table, and `patients`
draws clusters of four samples. The program prints medians and one JSON line. `--scipy` adds SciPy's bootstrap of a mean
(its BCa needs samples x samples numbers, 800 MB for 10,000).
"""

import argparse
import json
import statistics as standard
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.stats

from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.statistics.discrimination import auc


def seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return standard.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--categories", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scipy", action="store_true", help="time scipy.stats.bootstrap as well")
    given = parser.parse_args()
    n, r, rng = given.samples, given.resamples, np.random.default_rng(0)
    values, table, one = rng.random((n, 1)), rng.random((n, 5)), np.zeros(n, int)
    category, patients, labels = rng.integers(0, given.categories, n), np.arange(n) // 4, rng.random(n) < 0.1
    percentile, bca = Bootstrap(r), Bootstrap(r, interval="bca")
    work: dict[str, Callable[[], object]] = {
        "mean, percentile": lambda: percentile.means(values, one, 1)[0][0].interval(),
        "mean, bca": lambda: bca.means(values, one, 1)[0][0].interval("bca"),
        "table, percentile": lambda: percentile.means(table, category, given.categories),
        "table, patients, bca": lambda: bca.means(table, category, given.categories, patients),
        "auc, percentile": lambda: percentile.resample(lambda w: auc(labels, values[:, 0], w), n).interval(),
        "auc, bca": lambda: bca.resample(lambda w: auc(labels, values[:, 0], w), n).interval("bca"),
    }
    if given.scipy:
        for name, method in (("percentile", "percentile"), ("bca", "BCa")):
            options = {"n_resamples": r, "method": method, "rng": 0}
            work[f"scipy mean, {name}"] = partial(scipy.stats.bootstrap, (values[:, 0],), np.mean, **options)
    found = {name: round(seconds(run, given.repeats), 3) for name, run in work.items()}
    for name, value in found.items():
        print(f"{name:24s} {value:7.3f} s")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
