"""What `loss.hard_negatives` changes on validation phantoms: the demo cut to 250 steps (docs/training.md). Run:

python launch.py --config=configs/demo.py --sweep=configs/sweeps/hard_negatives.py --workdir=runs/negatives [--dry_run]
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json

SCORED = {"train": 8, "validation": 300, "test": 8, "seed": 0}


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    entry = {"name": "phantom", "directory": config.data.directory, "builder": SCORED, "split": "validation"}
    scored = [{**entry, "title": "maps"}, {**entry, "title": "counterfactuals", "task": "counterfactual"}]
    short = {"training.steps": 250, "training.validate_every": 125, "evaluation.datasets": scored}
    for seed in (1, 2, 3):
        for number in (0, 1, 2):
            yield {"name": f"{number}_seed{seed}", "loss.hard_negatives": number, "seed": seed, **short}
