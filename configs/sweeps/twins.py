"""What `loss.twins` changes on phantoms: three seeds each, on a demo cut to a few minutes (docs/training.md). Run:

python launch.py --config=configs/demo.py --sweep=configs/sweeps/twins.py --workdir=runs/twins [--dry_run]
"""

from collections.abc import Iterator
from typing import get_args

from ml_collections import ConfigDict

from afloc_jax.losses.settings import Twins
from afloc_jax.settings import Json

PHANTOMS = {"train": 1000, "validation": 64, "test": 150, "seed": 0}


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    scored = [{**dataset.to_dict(), "builder": PHANTOMS, "title": "phantoms"} for dataset in config.evaluation.datasets]
    short = {
        "data.builder": PHANTOMS,
        "evaluation.datasets": scored,
        "model.image.input_size": 64,
        "optimizer.warmup_steps": 20,
        "training.steps": 150,
        "training.validate_every": 75,
    }
    for seed in (1, 2, 3):
        for treatment in get_args(Twins):
            yield {"name": f"{treatment}_seed{seed}", "loss.twins": treatment, "seed": seed, **short}
