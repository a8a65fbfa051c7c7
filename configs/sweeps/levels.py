"""The paper's ablation of levels: all seven non-empty subsets of report, sentence and word level. Run:

python launch.py --config=configs/afloc.py --sweep=configs/sweeps/levels.py --workdir=runs/levels [--dry_run]
"""

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json

LEVELS = ("report", "sentence", "word")


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run. The run with all levels comes first.

    A level that is on keeps its weight in `config`, or gets 1 where that is 0.
    """
    for count in range(len(LEVELS), 0, -1):
        for chosen in itertools.combinations(LEVELS, count):
            weights = {level: (config.loss.weights[level] or 1.0) if level in chosen else 0.0 for level in LEVELS}
            yield {"name": "+".join(chosen), **{f"loss.weights.{level}": weights[level] for level in LEVELS}}
