"""The paper's ablation of frozen towers: none, either, both. The projections are always trained. Run:

afloc sweep --config=published --sweep=frozen_towers --workdir=runs/frozen_towers [--dry-run]

Frozen towers need trained weights: --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')". Where the image tower
is frozen, --config.data.features=FOLDER computes its features once for both runs (docs/training.md).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    for image in (False, True):
        for text in (False, True):
            frozen = "_and_".join([*["image"] * image, *["text"] * text]) or "none"
            features = config.data.features if image else ""
            yield {
                "name": frozen,
                "model.image.freeze": image,
                "model.text.freeze": text,
                "data.features": features,
            }
