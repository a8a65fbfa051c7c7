"""Scores of the heat maps of trained models with other settings of `localization`, without training again.

    python -m benchmarks.map_choices runs/demo/model runs/demo2/model [--count 400] [--by_class] [--directory data]

Every model localises the findings of the same phantoms, which are in none of its splits, with each of the settings in
`WAYS`. `localization` in configs/demo.py was chosen in this way. The program prints the mean pointing game and IoU over
categories of every model, then the means of all models by category. With `--by_class` the prompt is the name of the
class, and the truth is all findings of that class in the image.
"""

import argparse

import numpy as np

from afloc_jax.evaluation.localization.samples import named_by_class, read_truths
from afloc_jax.evaluation.localization.scores import Scores, score
from afloc_jax.evaluation.truth.sample import Drawing
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.inference.model import load
from afloc_jax.settings import Json
from data_pipelines.prepared import open_source

SEED = 100  # draws the phantoms, and no other set
WAYS: dict[str, dict[str, Json]] = {
    "dot product": {"similarity": "dot"},
    "as trained": {},
    **{f"one step at {step}": {"presence_threshold": step, "presence_growth": 0.0} for step in (0.3, 0.4, 0.5, 0.6)},
    **{
        f"{step}, growth {growth}": {"presence_threshold": step, "presence_growth": growth}
        for step in (0.4, 0.45, 0.5)
        for growth in (0.04, 0.08, 0.1)
    },
}


def by_category(scores: Scores, values: np.ndarray) -> np.ndarray:
    """The mean of each category [categories]."""
    members = [scores.category_index == number for number in range(len(scores.categories))]
    return np.array([np.nanmean(values[member]) for member in members])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders that were trained on phantoms")
    parser.add_argument("--count", type=int, default=400, help="phantoms, of which about half show a finding or more")
    parser.add_argument("--by_class", action="store_true", help="the name of the class as prompt")
    parser.add_argument("--directory", default="data", help="where prepared phantoms lie")
    given = parser.parse_args()
    builder = {"train": 0, "validation": given.count, "test": 0, "seed": SEED}
    source = open_source("phantom", given.directory, "validation", builder=builder)
    annotated = read_truths(source, Drawing())
    annotated = named_by_class(annotated) if given.by_class else annotated
    truths, rows = annotated.truths, annotated.rows
    images = np.stack([source[row].image for row in range(len(source))])
    prompts = [truth.label_text for truth in truths]

    results: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {way: [] for way in WAYS}
    for folder in given.models:
        model = load(folder)
        trained = model.config.localization.plain()
        for way, changes in WAYS.items():
            model.heatmap_settings = HeatmapSettings.read(trained | changes)
            scores = score(truths, model.heatmaps_of_pairs(images, rows, prompts))
            results[way].append((by_category(scores, scores["pointing"]), by_category(scores, scores.overlap)))
    print(f"{len(images)} phantoms, {len(truths)} findings: {', '.join(scores.categories)}")
    for way, models in results.items():
        pointing, overlap = np.array(models).mean(axis=2).T
        print(f"{way:20s} pointing {pointing.round(3)} mean {pointing.mean():.3f}, IoU {overlap.round(3)}", end=" ")
        print(f"mean {overlap.mean():.3f}: {np.array(models)[:, 1].mean(axis=0).round(3)}", flush=True)


if __name__ == "__main__":
    main()
