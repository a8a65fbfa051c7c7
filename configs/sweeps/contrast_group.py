"""The paper's ablation of the contrast: how many pairs are contrasted, and in which order they are split. Run:

afloc sweep --config=published --sweep=contrast_group --workdir=runs/contrast_group [--dry-run]

Batch statistics keep their group (`model.image.statistics_group`), so that the contrast alone changes.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    batch = config.training.batch_size
    yield {"name": "whole_batch", "loss.contrast_group": 0, "loss.contrast_group_order": "batch"}
    for parts in (2, 4, 8):
        for order in ("batch", "length"):
            yield {
                "name": f"groups_of_{batch // parts}_by_{order}",
                "loss.contrast_group": batch // parts,
                "loss.contrast_group_order": order,
            }
