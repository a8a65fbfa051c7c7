"""The paper's ablation of merging: how hidden states and word pieces become words, and how many layers count. Run:

afloc sweep --config=published --sweep=merging --workdir=runs/merging [--dry-run]
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    layers = config.model.text.last_layers
    for count in dict.fromkeys((layers, 1)):
        for how in (("sum", "sum"), ("mean", "mean"), ("sum", "mean"), ("mean", "sum")):
            if count == 1 and how[0] == "mean":
                continue  # of one layer, sum and mean are the same
            yield {
                "name": f"layers{count}_{how[0]}_pieces_{how[1]}",
                "model.text.last_layers": count,
                "model.text.merge_layers": how[0],
                "model.text.merge_pieces": how[1],
            }
