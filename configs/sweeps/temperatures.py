"""The paper's ablation of temperatures: each of the three at a half and twice its value, the others as they are. Run:

afloc sweep --config=published --sweep=temperatures --workdir=runs/temperatures [--dry-run]
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json

TEMPERATURES = ("attention", "pooling", "contrast")  # temp1, temp2, temp3 of the release


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    yield {"name": "as_they_are"}
    for which in TEMPERATURES:
        key = f"{which}_temperature"
        for factor in (0.5, 2.0):
            value = factor * config.loss[key]
            yield {"name": f"{which}{value:g}", f"loss.{key}": value}
