"""Scores of the heat maps of trained models with other settings of `localization`, without training again.

    python -m benchmarks.map_choices runs/demo/model runs/demo2/model [--count 400] [--by_class] [--directory data]

Every model localises the findings of the same phantoms, which are in none of its splits, with each of the settings in
`WAYS`. `localization` in configs/demo.py was chosen in this way. The program prints the mean pointing game and IoU over
categories of every model, then the means of all models by category. With `--by_class` the prompt is the name of the
class, and the truth is all findings of that class in the image. `--sharpen` tries the steps of `heatmaps.sharpened`
instead of `WAYS`, `--prune` prompts without the words that do not localise.
"""

import argparse
from collections.abc import Iterable

import numpy as np

from afloc_jax.evaluation.localization.samples import named_by_class, read_truths
from afloc_jax.evaluation.localization.scores import Scores, score
from afloc_jax.evaluation.truth.sample import Drawing
from afloc_jax.heatmaps import HeatmapSettings, sharpened
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
STEPS = [(at, steepness) for at in (1.0, 2.0, 3.0) for steepness in (1.0, 2.0, 4.0)]


def by_category(scores: Scores, values: np.ndarray) -> np.ndarray:
    """The mean of each category [categories]."""
    members = [scores.category_index == number for number in range(len(scores.categories))]
    return np.array([np.nanmean(values[member]) for member in members])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders that were trained on phantoms")
    parser.add_argument("--count", type=int, default=400, help="phantoms, of which about half show a finding or more")
    parser.add_argument("--by_class", action="store_true", help="the name of the class as prompt")
    parser.add_argument("--sharpen", action="store_true", help="maps as trained, and sharpened by several steps")
    parser.add_argument("--prune", action="store_true", help="maps as trained, and of pruned prompts")
    parser.add_argument("--directory", default="data", help="where prepared phantoms lie")
    given = parser.parse_args()
    builder = {"train": 0, "validation": given.count, "test": 0, "seed": SEED}
    source = open_source("phantom", given.directory, "validation", builder=builder)
    annotated = read_truths(source, Drawing())
    annotated = named_by_class(annotated) if given.by_class else annotated
    truths, rows = annotated.truths, annotated.rows
    images = np.stack([source[row].image for row in range(len(source))])
    prompts = [truth.label_text for truth in truths]

    results: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for folder in given.models:
        model = load(folder)
        trained = model.config.localization.plain()
        ways = {way: WAYS[way] for way in ("dot product", "as trained")} if given.sharpen or given.prune else WAYS
        maps: dict[str, Iterable[np.ndarray]] = {}
        for way, changes in ways.items():
            model.heatmap_settings = HeatmapSettings.read(trained | changes)
            maps[way] = model.heatmaps_of_pairs(images, rows, prompts)
        for way in [*ways]:
            if given.sharpen:
                for at, steepness in STEPS:
                    sharp = (np.asarray(sharpened(one, at, steepness)) for one in maps[way])
                    maps[f"{way}, {at} std, steepness {steepness}"] = list(sharp)
            if given.prune:
                model.heatmap_settings = HeatmapSettings.read(trained | ways[way])
                maps[f"{way}, pruned"] = model.with_maps(prune=True).heatmaps_of_pairs(images, rows, prompts)
        for way, found in maps.items():
            scores = score(truths, found)
            scored = by_category(scores, scores["pointing"]), by_category(scores, scores.overlap)
            results.setdefault(way, []).append(scored)
    print(f"{len(images)} phantoms, {len(truths)} findings: {', '.join(scores.categories)}")
    for way, models in results.items():
        pointing, overlap = np.array(models).mean(axis=2).T
        print(f"{way:20s} pointing {pointing.round(3)} mean {pointing.mean():.3f}, IoU {overlap.round(3)}", end=" ")
        print(f"mean {overlap.mean():.3f}: {np.array(models)[:, 1].mean(axis=0).round(3)}", flush=True)


if __name__ == "__main__":
    main()
