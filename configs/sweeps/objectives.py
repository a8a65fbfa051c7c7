"""Objectives on one network for the same 300 steps, three seeds each, scored on validation phantoms alone. Run:

python launch.py --config=configs/demo.py --sweep=configs/sweeps/objectives.py --workdir=runs/objectives [--dry_run]

`python -m benchmarks.objectives_table runs/objectives` prints a table of them. Network, data, optimiser, batch and
steps are the demo's. Each objective has the settings of its own recipe, also for the query and the kind of
its maps: "published" those of configs/afloc.py, "gloria", "radzero" and "sigmoid" those of configs/gloria.py,
radzero.py and siglip.py. "unit" is the demo's own objective, to which "twins" and "hard" add one thing each.
"""

from collections.abc import Iterator

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from afloc_jax.settings import Json
from configs import afloc, gloria, radzero, siglip

SCORED = {"train": 8, "validation": 300, "test": 8, "seed": 0}
# What an objective brings along, besides all of `loss`.
OF_A_RECIPE = (
    "data.sentences",
    "model.text.context",
    "model.text.merge_pieces",
    "localization.prompt_level",
    "localization.similarity",
)


def recipe(other: ConfigDict, base: ConfigDict) -> dict[str, Json]:
    """The overrides that give `base` the objective of another config."""
    values, present = (flatten_dict(config.to_dict(), sep=".") for config in (other, base))
    keys = [key for key in values if key.startswith("loss.") or key in OF_A_RECIPE]
    return {key: values[key] for key in keys if values[key] != present[key]}


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    where = {"directory": config.data.directory, "builder": SCORED, "split": "validation"}
    entry: dict[str, Json] = {"name": "phantom", **where}
    scored: list[Json] = [
        {**entry, "title": "maps"},
        {**entry, "title": "counterfactuals", "task": "counterfactual"},
        {**entry, "title": "presence", "task": "presence"},
    ]
    short = {"training.steps": 300, "training.validate_every": 150, "evaluation.datasets": scored}
    objectives: dict[str, dict[str, Json]] = {
        "published": recipe(afloc.get_config(), config),
        "gloria": recipe(gloria.get_config(), config),
        "radzero": recipe(radzero.get_config(), config),
        "sigmoid": recipe(siglip.get_config(), config),
        "unit": {},
        "twins": {"loss.twins": "mask"},
        "hard": {"loss.hard_negatives": 1},
    }
    for seed in (1, 2, 3):
        for name, changes in objectives.items():
            yield {"name": f"{name}_seed{seed}", **changes, "seed": seed, **short}
