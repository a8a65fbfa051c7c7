"""Files in, scores out: what `afloc score` does."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import afloc_jax
from afloc_jax.errors import UsageError
from afloc_jax.evaluation.files import remove_examples
from afloc_jax.evaluation.localization.examples import write_examples
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol, Samples
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.results import write_results
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.localization.segmentations import score_segmentations
from afloc_jax.evaluation.localization.summary import add_baselines, summarise
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.truth.heatmap_files import HeatmapFile
from afloc_jax.evaluation.truth.pictures import Pictures
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Truth

PathLike = str | Path


def score_files(
    truth: PathLike,
    heatmaps: PathLike | None,
    out: PathLike,
    protocol: str | LocalizationProtocol = "afloc",
    compatible: bool = False,
    *,
    images: PathLike | None = None,
    title: str = "",
    bootstrap: Bootstrap | None = None,
    validation: tuple[PathLike, PathLike] | None = None,
    segmentations: PathLike | None = None,
    benchmarks: Sequence[PathLike] = (),
) -> dict[str, Any]:
    """Score any system's heat maps against a truth file and write the results to `out`; what `afloc score` does.

    Args:
        truth: truth file, see `read_truth`.
        heatmaps: .npz of heat maps; None where `segmentations` are scored.
        out: folder of the results.
        protocol: itself or its name.
        compatible: as the published release, defects included.
        images: folder of the images, for the examples of the report; without it their maps are shown on black.
        title: of the data set for readers; one of a published table is shown beside that.
        bootstrap: how intervals are made; by patient where the truth file names the patient of every sample.
        validation: truth file and heat maps that thresholds are chosen on ("chexlocalize" needs them).
        segmentations: predicted masks or points instead of heat maps ("chexlocalize").
        benchmarks: files of masks or points that are scored on the same samples, each with the paired difference.

    Returns the summary. Raises `UserError` for unreadable, incomplete or malformed input, before anything is written.
    """
    bootstrap = bootstrap or Bootstrap()
    chosen = get_protocol(protocol) if isinstance(protocol, str) else protocol
    pictures = Pictures(images) if images is not None else None
    _check_call(chosen, heatmaps, validation, segmentations, benchmarks)
    truths = read_truth(truth, compatible=compatible, negatives=chosen.negatives, boxes=chosen.boxes)
    files: dict[str, PathLike] = {"truth": truth}
    unused = 0
    scores: Scores
    if heatmaps is None:
        assert segmentations is not None  # _check_call has seen to it
        files["segmentations"] = segmentations
        scores = score_segmentations(truths, truth, segmentations, compatible)
    else:
        files["heatmaps"] = heatmaps
        samples, unused = _samples(chosen, truths, heatmaps, "scoring")
        tuning = None
        if validation is not None and chosen.tuned:
            files |= {"validation_truth": validation[0], "validation_heatmaps": validation[1]}
            known = read_truth(validation[0], compatible=compatible, negatives=chosen.negatives, boxes=chosen.boxes)
            tuning, _ = _samples(chosen, known, validation[1], "validation")
        scores = chosen.score(samples, compatible, tuning)
    others = {Path(path).stem: score_segmentations(scores.truths, truth, path, compatible) for path in benchmarks}
    files |= {f"benchmark {Path(path).stem}": path for path in benchmarks}
    if heatmaps is not None:
        file = HeatmapFile(heatmaps)

        def image_of(sample: int) -> np.ndarray:
            truth = scores.truths[sample]
            return np.zeros(truth.mask.shape, np.uint8) if pictures is None else pictures.square(truth)

        write_examples(Path(out), scores, image_of, lambda sample: next(file.maps([scores.truths[sample]])))
    else:
        remove_examples(Path(out))  # of maps that an earlier call scored into the same folder
    summary = summarise(scores, bootstrap)
    if others:
        summary = add_baselines(summary, scores, others, bootstrap)
    summary |= {"unused_heatmaps": unused, "title": title}
    summary["provenance"] = {
        "code": f"afloc_jax {afloc_jax.__version__}",
        **{name: {"file": Path(path).name, "sha256": _sha256(path)} for name, path in files.items()},
        "device": f"cpu, numpy {np.__version__} float64",
    }
    write_results(out, scores, summary)
    return summary


def _check_call(
    protocol: LocalizationProtocol,
    heatmaps: PathLike | None,
    validation: tuple[PathLike, PathLike] | None,
    segmentations: PathLike | None,
    benchmarks: Sequence[PathLike],
) -> None:
    if (heatmaps is None) == (segmentations is None):
        raise UsageError("give heat maps or segmentations to score, one of them")
    if (segmentations is not None or benchmarks) and not protocol.negatives:
        raise UsageError(f"protocol {protocol.name} scores heat maps only; masks need protocol chexlocalize")
    if validation is not None and (not protocol.tuned or segmentations is not None):
        raise UsageError("validation data are for heat maps under protocol chexlocalize: nothing else has thresholds")
    if protocol.tuned and segmentations is None and validation is None:
        raise UsageError(
            f"protocol {protocol.name} chooses its thresholds on validation data: "
            "give --validation_truth and --validation_heatmaps"
        )
    names = [Path(path).stem for path in benchmarks]
    if len(set(names)) < len(names):
        raise UsageError("two benchmark files have the same name; rename one")


def _samples(protocol: LocalizationProtocol, truths: list[Truth], heatmaps: PathLike, what: str) -> tuple[Samples, int]:
    """Truths with their maps, and how many maps of the file belong to none."""
    file = HeatmapFile(heatmaps)
    if protocol.negatives:
        truths = truths + file.negatives(truths)
    file.check(truths)
    maps = tqdm(file.maps(truths), total=len(truths), desc=what, unit="map", disable=None)
    return Samples(truths, maps), len(file) - len({truth.key for truth in truths})


def _sha256(path: PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
