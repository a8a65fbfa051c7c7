"""An ablation of the departures of configs/demo.py from the published objective: all of them, then all but one. Run:

python launch.py --config=configs/demo.py --sweep=configs/sweeps/demo_choices.py --workdir=runs/demo_choices [--dry_run]
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json

NARROW_VIEW = {"top_down": False}  # receptive fields of the deep map are about 54 of 224 pixels
ALWAYS_CONTEXT = {"drop_context": 0.0}


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    published = {"loss.contrast_unit": "caption", "loss.region_pooling": "attention", "loss.contrast_temperature": 10.0}
    yield {"name": "demo"}
    yield {"name": "caption_contrast", "loss.contrast_unit": "caption"}
    yield {"name": "published_loss", **published}
    yield {"name": "report_context", "model.text.context": "report"}
    yield {"name": "not_centred", "model.image.center": False}
    options = config.model.image.options.to_dict()
    yield {"name": "narrow_view", "model.image.options": {**options, **NARROW_VIEW}}
    yield {"name": "always_context", "model.image.options": {**options, **ALWAYS_CONTEXT}}
    yield {"name": "dot_product", "localization.similarity": "dot"}
    yield {"name": "not_named", "data.builder": {**config.data.builder.to_dict(), "named": 0.0}}
    yield {"name": "random_subsets", "data.sentences": "subset"}
    yield {"name": "word_level", "loss.weights.word": 0.5}
