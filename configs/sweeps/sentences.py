"""The paper's ablation of drawing: which sentences of a report a pair gets each time it is drawn. Run:

afloc sweep --config=published --sweep=sentences --workdir=runs/sentences [--dry-run]

The modes are those of `data_pipelines.batches.sample_sentences`; "release_subset" is the published one.
"""

from collections.abc import Iterator
from typing import get_args

from ml_collections import ConfigDict

from afloc_jax.settings import Json
from data_pipelines.settings import SentenceSampling


def sweep(_: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    for mode in get_args(SentenceSampling):
        yield {"name": mode, "data.sentences": mode}
