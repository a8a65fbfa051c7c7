"""Example samples for the report: examples.npz and examples.json of a result folder."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

from afloc_jax.evaluation.files import json_of, write_pictures
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.files import Path


def write_examples(
    out: Path, scores: Scores, image_of: Callable[[int], np.ndarray], map_of: Callable[[int], np.ndarray]
) -> None:
    """Writes the best, median and worst sample of each category: examples.npz (arrays), examples.json (descriptions).

    Args:
        out: the folder of results.
        scores: the scores of all samples.
        image_of, map_of: functions from the index of a sample to its image [S, S] uint8 and its map [S, S].
    """
    chosen = choose_examples(scores)
    overlap = scores.overlap
    images, maps, truths, described = [], [], [], []
    for i, rank in chosen:
        truth = scores.truths[i]
        images.append(image_of(i))
        truths.append(truth.mask > 0)
        maps.append(np.asarray(map_of(i), np.float32))
        described.append(
            {
                "id": truth.id,
                "category": truth.category,
                "prompt": truth.label_text,
                "rank": rank,
                "iou": float(overlap[i]),
                "cnr": float(scores["cnr"][i]) if "cnr" in scores.metrics else None,
                "hit": bool((scores["pointing"][i] if "pointing" in scores.metrics else overlap[i]) >= 0.5),
                "note": str(scores.outcome(i, "iou", 0)),
                "peak": _peak(maps[-1], scores.options),
            }
        )
    arrays = {"images": np.stack(images), "heatmaps": np.stack(maps), "truths": np.stack(truths)}
    write_pictures(out, arrays, json_of(described))


def _peak(heatmap: Shaped[np.ndarray, "S S"], options: ProtocolOptions) -> list[int]:
    """The position x, y of the maximum within the scored region."""
    region = options.scored_region(heatmap)
    margin = (heatmap.shape[0] - region.shape[0]) // 2
    y, x = np.unravel_index(int(region.argmax()), region.shape)
    return [int(x) + margin, int(y) + margin]


def choose_examples(scores: Scores) -> list[tuple[int, str]]:
    """Samples with their rank ("best", "median", "worst" by IoU) for each category; fewer if it has fewer samples."""
    overlap = scores.overlap  # NaN without truth
    chosen: list[tuple[int, str]] = []
    for c in range(len(scores.categories)):
        members = np.flatnonzero((scores.category_index == c) & np.isfinite(overlap) & ~scores.empty_truth)
        order = members[np.argsort(-overlap[members], kind="stable")]
        picks = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"} if len(order) >= 3 else {}
        picks = picks or dict(zip(range(len(order)), ("best", "worst"), strict=False))
        chosen += [(int(order[k]), rank) for k, rank in sorted(picks.items())]
    return chosen or [(0, "best")]
