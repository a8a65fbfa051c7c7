"""Scores of files of heat maps, for `afloc score`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

import afloc_jax
from afloc_jax.errors import UsageError
from afloc_jax.evaluation.files import remove_examples
from afloc_jax.evaluation.localization.examples import write_examples
from afloc_jax.evaluation.localization.generalised import score_boxes
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol, Samples
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.localization.segmentations import score_segmentations
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.localization.summary import summarise, write_results
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.evaluation.truth.box_files import BoxFile
from afloc_jax.evaluation.truth.heatmap_files import HeatmapFile
from afloc_jax.evaluation.truth.pictures import Pictures
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.files import AnyPath, Path, sha256_of


def score_files(
    truth: AnyPath,
    heatmaps: AnyPath | None,
    out: AnyPath,
    settings: LocalizationSettings | None = None,
    *,
    images: AnyPath | None = None,
    validation: tuple[AnyPath, AnyPath] | None = None,
    segmentations: AnyPath | None = None,
    benchmarks: Sequence[AnyPath] = (),
    boxes: AnyPath | None = None,
) -> JsonObject:
    """Scores any system's heat maps, masks or boxes against a truth file and writes the results to `out`.

    Args:
        truth: the truth file, see `read_truth`.
        heatmaps: an .npz of heat maps; None if `segmentations` or `boxes` are scored.
        out: the folder of results.
        settings: protocol, intervals and title; the data set that they name is not read.
        images: the folder of images for the examples of the report; without it the maps are shown on black. In original
            pixels it also tells the sizes of images that the truth does not list.
        validation: truth file and heat maps on which thresholds are chosen (needed by "chexlocalize" and, for maps, by
            "generalised").
        segmentations: predicted masks or points instead of heat maps ("chexlocalize").
        benchmarks: files of masks or points that are scored on the same samples, each with the paired difference.
        boxes: drawn boxes instead of heat maps ("generalised"), see `BoxFile`.

    Returns:
        The content of summary.json.

    Raises:
        UserError: an input is unreadable, incomplete or malformed; nothing is written then.
    """
    settings = settings or LocalizationSettings()
    protocol = settings.scoring
    pictures = None if images is None else Pictures(images, "cv2" if protocol.compatible else "luma")
    if settings.sharpen and heatmaps is None:
        raise UsageError("--sharpen is for heat maps; masks and points have none")
    _check_call(protocol, heatmaps, validation, segmentations, benchmarks, boxes)
    truths = _read(truth, protocol)
    files: dict[str, AnyPath] = {"truth": truth}
    maps: HeatmapFile | None = None
    unused = missing = 0
    scores: Scores
    if segmentations is not None:
        files["segmentations"] = segmentations
        scores = score_segmentations(truths, truth, segmentations, protocol.options)
    elif boxes is not None:
        files["boxes"], drawn = boxes, BoxFile(boxes)
        unused = drawn.unused(truths)
        scores = score_boxes(truths, drawn.of, protocol.options)
    elif heatmaps is not None:
        files["heatmaps"], maps = heatmaps, HeatmapFile(heatmaps, settings.sharpen)
        samples = _samples(protocol, truths, maps, pictures, "scoring")
        missing = sum(not maps.has(sample) for sample in samples.truths)
        unused = len(maps) + missing - len({sample.key for sample in samples.truths})
        tuning = None
        if validation is not None:
            files |= {"validation_truth": validation[0], "validation_heatmaps": validation[1]}
            tuned_on = _read(validation[0], protocol)
            tuning = _samples(protocol, tuned_on, HeatmapFile(validation[1], settings.sharpen), pictures, "validation")
        scores = protocol.score(samples, tuning)
        if missing:  # as in the official code, an image without a map has an empty mask, and no part in the hit rate
            mapped = [maps.has(sample) for sample in samples.truths]
            hits = np.where(mapped, scores.values["pointing"], np.nan)
            scores = replace(scores, values={**scores.values, "pointing": hits})
    others = {Path(path).stem: score_segmentations(scores.truths, truth, path, protocol.options) for path in benchmarks}
    files |= {f"benchmark {Path(path).stem}": path for path in benchmarks}
    if maps is None:
        remove_examples(Path(out))  # examples of an earlier call in the same folder
    else:
        write_examples(Path(out), scores, *_pictures(scores, maps, pictures))
    about: JsonObject = {"missing_heatmaps": missing} if missing else {}
    about |= {"sharpen": True} if settings.sharpen else {}
    about |= {"unused_heatmaps" if boxes is None else "unused_boxes": unused, "title": settings.title}
    about |= {"provenance": _provenance(files, "float32" if protocol.original and maps is not None else "float64")}
    summary = summarise(scores, settings.resampling, others, about=about)
    write_results(out, scores, summary, others)
    return summary.to_json()


def _provenance(files: Mapping[str, AnyPath], precision: str) -> JsonObject:
    """The program and the input files by their part in the scores."""
    read: JsonObject = {name: {"file": Path(path).name, "sha256": sha256_of(path)} for name, path in files.items()}
    return {"code": f"afloc_jax {afloc_jax.__version__}", **read, "device": f"cpu, numpy {np.__version__} {precision}"}


def _read(path: AnyPath, protocol: LocalizationProtocol) -> list[Truth]:
    return read_truth(path, protocol.drawing, negatives=protocol.negatives or protocol.absent)


def _pictures(
    scores: Scores, maps: HeatmapFile, pictures: Pictures | None
) -> tuple[Callable[[int], np.ndarray], Callable[[int], np.ndarray]]:
    """Functions from the index of a sample to its image and to its map."""

    def image_of(sample: int) -> np.ndarray:
        truth = scores.truths[sample]
        return np.zeros(truth.mask.shape, np.uint8) if pictures is None else pictures.square(truth)

    return image_of, lambda sample: next(maps.maps([scores.truths[sample]]))


def _check_call(
    protocol: LocalizationProtocol,
    heatmaps: AnyPath | None,
    validation: tuple[AnyPath, AnyPath] | None,
    segmentations: AnyPath | None,
    benchmarks: Sequence[AnyPath],
    boxes: AnyPath | None,
) -> None:
    if sum(file is not None for file in (heatmaps, segmentations, boxes)) != 1:
        raise UsageError("give heat maps, segmentations or boxes to score, one of them")
    if boxes is not None and not protocol.absent:
        raise UsageError(f"protocol {protocol.name} scores no boxes; they need protocol generalised")
    if boxes is not None and validation is not None:
        raise UsageError("validation data are for heat maps; boxes need none")
    if (segmentations is not None or benchmarks) and not protocol.negatives:
        raise UsageError(f"protocol {protocol.name} scores heat maps only; masks need protocol chexlocalize")
    if validation is not None and (not protocol.tuned or segmentations is not None):
        raise UsageError("validation data are for heat maps under chexlocalize and generalised only; leave them out")
    if protocol.tuned and heatmaps is not None and validation is None:
        raise UsageError(
            f"protocol {protocol.name} chooses its thresholds on validation data: "
            "give --validation_truth and --validation_heatmaps"
        )
    names = [Path(path).stem for path in benchmarks]
    if len(set(names)) < len(names):
        raise UsageError("two benchmark files have the same name; rename one")


def _samples(
    protocol: LocalizationProtocol, truths: list[Truth], maps: HeatmapFile, pictures: Pictures | None, what: str
) -> Samples:
    """The truths with their maps. With negatives, images and classes that only the file of maps names are added.

    In original pixels the pictures tell the size of those images. In compatible scores with negatives a missing map
    predicts nothing, and thresholds are chosen without its sample.
    """
    some = protocol.negatives and protocol.compatible
    maps.check(truths, some)
    if protocol.negatives:
        unlisted = maps.negatives(truths)
        if protocol.original and pictures is not None:
            unlisted = _with_sizes(unlisted, pictures)
        truths = truths + unlisted
    if some and what == "validation":
        truths = [truth for truth in truths if maps.has(truth)]
    found = maps.maps(truths, protocol.original)
    return Samples(truths, tqdm(found, total=len(truths), desc=what, unit="map", disable=None))


def _with_sizes(samples: list[Truth], pictures: Pictures) -> list[Truth]:
    """The samples with the sizes of their images, where the truth does not tell them and the folder has the image."""
    unknown = dict.fromkeys(sample.image for sample in samples if not sample.height)
    sizes = {image: pictures.size(image) for image in unknown}
    return [
        replace(sample, height=sizes[sample.image][0], width=sizes[sample.image][1]) if not sample.height else sample
        for sample in samples
    ]
