"""What each departure of configs/demo.py from the published objective is worth: all of them, then one taken back. Run:

python launch.py --config=configs/demo.py --sweep=configs/sweeps/demo_choices.py --workdir=runs/demo_choices [--dry_run]
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

WIDE_VIEW = {"blocks": (1, 2, 1)}  # each region of the deep map sees about 86 of 224 pixels instead of 54


def sweep(config: ConfigDict) -> Iterator[dict[str, Any]]:
    """Overrides of one run each, by dotted key; `name` is the folder of the run."""
    published = {"loss.contrast_unit": "caption", "loss.region_pooling": "attention", "loss.contrast_temperature": 10.0}
    yield {"name": "demo"}
    yield {"name": "caption_contrast", "loss.contrast_unit": "caption"}
    yield {"name": "published_loss", **published}
    yield {"name": "report_context", "model.text.context": "report"}
    yield {"name": "not_centred", "model.image.center": False}
    yield {"name": "wide_view", "model.image.options": {**config.model.image.options.to_dict(), **WIDE_VIEW}}
    yield {"name": "random_subsets", "data.sentences": "subset"}
    yield {"name": "word_level", "loss.weights.word": 0.5}
