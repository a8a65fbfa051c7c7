"""Localisation and classification of image files, for `afloc localize` and `afloc classify`.

An unreadable image is reported, and the other images are processed. Every file is written completely or not at all.
"""

import dataclasses
import functools
import io
import sys
from collections.abc import Collection, Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, csv_text, user_path, write_json, write_whole
from afloc_jax.inference.batching import in_threads
from afloc_jax.inference.class_prompts import read_prompt_set
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.model import Model, load
from afloc_jax.inference.overlays import draw_boxes, overlay
from afloc_jax.inference.prompt_reading import report_readings
from afloc_jax.inference.squares import to_square
from afloc_jax.inference.zero_shot import framing_of
from afloc_jax.settings import Json
from data_pipelines.constants import Framing, GreyRule
from data_pipelines.images import ImageError, read_image
from data_pipelines.reports import clean_prompt
from data_pipelines.what_images import warning_on_drawings


def localize_files(
    model: AnyPath,
    images: Sequence[AnyPath],
    prompts: Sequence[str],
    out: AnyPath,
    *,
    threshold: float = 0.3,
    square: bool = False,
    compatible: bool = False,
    strict: bool = False,
) -> tuple[int, list[str]]:
    """Writes a heat map and an overlay for every image and prompt, and localize.json.

    Prompts that are empty after cleaning, have unknown words or do not fit are named there and on stderr; an empty one
    among others has no files.

    The files of image `a.png` and prompt k are `a.k.heatmap.npy` and `a.k.overlay.png`. Images with the same stem get
    as many folder names in front as make them distinct (`left_a.0.heatmap.npy`). A path given twice is processed once.

    Args:
        model: the model folder.
        images: image files.
        prompts: phrases to localise.
        out: the output folder, created if needed.
        threshold: boxes enclose the values above it on the map scaled to [-1, 1].
        square: write maps of the padded square instead of maps at original size.
        compatible: clean prompts, and read grey values, as the published release does.
        strict: refuse prompts that the model does not understand as a whole.

    Returns:
        The number of images processed, and the error messages of the others.

    Raises:
        UsageError: all prompts are empty after cleaning, or with `strict` one has a fault, or `out` is a file.
        UserError: the model folder is unusable.
    """
    not_empty(prompts, compatible)  # before the model is loaded, which takes seconds
    folder = make_folder(user_path(out, "--out"))
    names = output_names(images)
    loaded = load(model)
    readings = loaded.examine(prompts, compatible=compatible)
    report_readings(readings, strict)
    asked = [k for k, reading in enumerate(readings) if reading.text]
    entries: list[Json] = []
    warned = 0
    failed: list[str] = []
    for batch in readable(names, loaded.batch_size, failed, loaded.grey_rule(compatible)):
        pictures = [pixels for _, pixels in batch]
        found = loaded.localize_each(pictures, [prompts[k] for k in asked], threshold, compatible)
        for (path, pixels), of_image in zip(batch, found, strict=True):
            write = functools.partial(_write_localization, folder, names[path], pixels, square)
            files = dict(zip(asked, in_threads(write, list(zip(asked, of_image, strict=True))), strict=True))
            written: list[Json] = [
                {"prompt": "", **files.get(k, {}), "given": reading.given, "threshold": threshold, **reading.plain}
                for k, reading in enumerate(readings)
            ]
            height, width = pixels.shape
            entry: dict[str, Json] = {"image": str(path), "height": height, "width": width, "prompts": written}
            warning = warning_on_drawings(loaded.config.trained_on, height, width)
            warned += bool(warning)
            entries.append({**entry, "warning": warning} if warning else entry)
    content = {
        "model": _described(model, loaded),
        "map": "square" if square else "original",
        "compatible": compatible,
        "calibrated": loaded.calibration is not None,
        "images": entries,
        "failed": failed,
    }
    write_json(folder / "localize.json", content)
    _warn(warned, len(entries))
    return len(entries), failed


def classify_files(
    model: AnyPath,
    images: Sequence[AnyPath],
    classes: Sequence[str] | None,
    out: AnyPath,
    *,
    prompts: AnyPath | None = None,
    compatible: bool = False,
    framing: Framing | None = None,
    aggregation: str = "mean",
    strict: bool = False,
) -> tuple[int, list[str]]:
    """Writes a CSV with a row per image and a column per class, and a JSON file of that name with model and prompts.

    Phrases that are empty after cleaning, have unknown words or do not fit are named there and on stderr; an empty one
    among others of its class is left out.

    Args:
        model: the model folder.
        images: image files.
        classes: names of classes; by default those of `prompts`.
        out: the CSV file.
        prompts: a JSON file or the name of a prompt set, see `afloc_jax.inference.class_prompts`.
        compatible: clean prompts as the published release does.
        framing: "pad" or "crop", see `Model.classify`. None stands for "crop" if `compatible`, else for "pad".
        aggregation: "mean" or "max", see `Model.classify`.
        strict: refuse phrases that the model does not understand as a whole.

    Returns:
        The number of images processed, and the error messages of the others.

    Raises:
        UsageError: there is no class, or one has neither a word nor phrases, or the prompt set is unusable, or with
            `strict` a phrase has a fault.
        UserError: the model folder is unusable.
    """
    prompt_set, framing = read_prompt_set(prompts), framing_of(framing, compatible)
    classes = list(classes or prompt_set.classes)
    if not classes:
        raise UsageError("no class to look for; give --class NAME or --prompts FILE")
    check_prompts(prompt_set.without_entry(classes), compatible=False)  # "Findings suggesting ???" asks for nothing
    phrases = {name: prompt_set.prompts(name) for name in classes}
    kept = {name: [not_empty(side, compatible) for side in sides] for name, sides in phrases.items()}
    used = {name: dict(zip(("positive", "negative"), sides, strict=True)) for name, sides in kept.items()}
    target = user_path(out, "--out")
    if target.is_dir():
        raise UsageError(f"--out {target} is a folder; give the name of a CSV file")
    if target.suffix.lower() == ".json":
        raise UsageError(f"--out {target}: how it was made goes into a .json beside the table; name a .csv")
    make_folder(target.parent)
    loaded = load(model)
    every = dict.fromkeys(phrase for sides in phrases.values() for side in sides for phrase in side)
    readings = loaded.examine([*every], compatible=compatible)
    report_readings(readings, strict)
    if any(not reading.text for reading in readings):
        prompt_set = dataclasses.replace(prompt_set, classes=used)
    failed: list[str] = []
    rows: list[list[str]] = []
    present: dict[str, Json] = {}
    not_drawn: list[str] = []  # images of other kinds, if the model has seen drawings alone
    for batch in readable(distinct(images), loaded.batch_size, failed, loaded.grey_rule()):
        pixels = [image for _, image in batch]
        scores, judged = loaded.classify_and_judge(pixels, classes, prompt_set, compatible, framing, aggregation)
        present.update(
            (str(path), dict(zip(classes, row, strict=True))) for (path, _), row in zip(batch, judged, strict=True)
        )
        warnings = [warning_on_drawings(loaded.config.trained_on, *image.shape) for image in pixels]
        not_drawn += [str(path) for (path, _), warning in zip(batch, warnings, strict=True) if warning]
        rows += [[str(path), *(f"{p:.6f}" for p in row)] for (path, _), row in zip(batch, scores, strict=True)]
    write_whole(target, csv_text(["image", *classes], rows))
    content = {
        "model": _described(model, loaded),
        "framing": framing,
        "aggregation": aggregation,
        "compatible": compatible,
        "prompt_set": prompt_set.name,
        "prompts": prompt_set.listing(classes),
        "multiclass": prompt_set.multiclass,
        "unknown_words": {reading.given: [*reading.unknown_words] for reading in readings if reading.unknown_words},
        "truncated": [reading.given for reading in readings if reading.truncated],
        "empty": [reading.given for reading in readings if not reading.text],
        "calibrated": loaded.calibration is not None,
        "present": present if loaded.calibration else None,
        "failed": failed,
    }
    if not_drawn:
        content["trained_on_drawings_but_these_are_none"] = not_drawn
    write_json(target.with_suffix(".json"), content)
    _warn(len(not_drawn), len(rows))
    return len(rows), failed


def _described(folder: AnyPath, model: Model) -> dict[str, Json]:
    """The model in the JSON files."""
    trained_on: list[Json] = [*model.config.trained_on]
    return {"folder": str(folder), "weights_sha256": model.weights_sha256, "trained_on": trained_on}


def _warn(warned: int, images: int) -> None:
    """Says on stderr that images are none of the drawings that a model was trained on."""
    if warned:
        print(
            "afloc: warning: the model was trained on drawings of chests (phantoms) alone, and "
            f"{warned} of {images} images {'are' if warned > 1 else 'is'} none: on images of patients its maps, boxes "
            "and numbers mean nothing",
            file=sys.stderr,
        )


def distinct(images: Sequence[AnyPath]) -> list[Path]:
    """The paths without repetitions, in their order. Raises UsageError where one is on remote storage."""
    return list(dict.fromkeys(user_path(image) for image in images))


def output_names(images: Sequence[AnyPath]) -> dict[Path, str]:
    """The start of the file names of each image's results. All differ, also on file systems that ignore case."""
    paths = distinct(images)
    names: dict[Path, str] = {}
    for path in paths:
        parts = [*path.absolute().parent.parts[1:], path.stem]
        same = [other for other in paths if other.stem.lower() == path.stem.lower()]
        length = 1
        while length < len(parts) and len(same) > 1:
            length += 1
            tail = "_".join(parts[-length:]).lower()
            same = [o for o in same if "_".join([*o.absolute().parent.parts[1:], o.stem][-length:]).lower() == tail]
        # a.png and a.jpg in one folder differ in their suffix only.
        names[path] = "_".join(parts[-length:]) if len(same) == 1 else path.name
    if len({name.lower() for name in names.values()}) < len(names):
        raise UsageError("some images would write to the same file names; localise them into separate folders")
    return names


def readable(
    paths: Collection[Path], size: int, failed: list[str], rule: GreyRule = "luma"
) -> Iterator[list[tuple[Path, UInt8[np.ndarray, "_ _"]]]]:
    """Batches of decoded images. The error of an unreadable image is printed on stderr and appended to `failed`."""
    ordered = list(paths)
    with tqdm(total=len(ordered), unit="image", disable=None) as progress:
        for start in range(0, len(ordered), size):
            batch: list[tuple[Path, UInt8[np.ndarray, "_ _"]]] = []
            part = ordered[start : start + size]
            for path, pixels in zip(part, in_threads(functools.partial(_read, rule=rule), part), strict=True):
                if isinstance(pixels, ImageError):
                    failed.append(str(pixels))
                    progress.write(f"afloc: {pixels}", file=sys.stderr)
                else:
                    batch.append((path, pixels))
            if batch:
                yield batch
            progress.update(len(part))


def _read(path: Path, rule: GreyRule) -> UInt8[np.ndarray, "H W"] | ImageError:
    try:
        return read_image(path, rule)
    except ImageError as error:
        return error


def _write_localization(
    out: Path, stem: str, pixels: UInt8[np.ndarray, "H W"], square: bool, numbered: tuple[int, Localization]
) -> dict[str, Json]:
    name, found = f"{stem}.{numbered[0]}", numbered[1]
    heatmap, picture = found.heatmap, pixels
    if square:
        heatmap, picture = found.square, to_square(pixels, found.square.shape[0])[0]
    drawn = overlay(picture, heatmap)
    drawn = drawn if square else draw_boxes(drawn, found.boxes)
    buffer = io.BytesIO()
    np.save(buffer, heatmap)
    write_whole(out / f"{name}.heatmap.npy", buffer.getvalue())
    write_whole(out / f"{name}.overlay.png", cv2.imencode(".png", drawn)[1].tobytes())
    return {
        "prompt": found.prompt,
        "similarity": found.similarity,
        "present": found.present,
        "boxes": found.boxes.tolist(),
        "heatmap": f"{name}.heatmap.npy",
        "overlay": f"{name}.overlay.png",
    }


def check_prompts(prompts: Sequence[str], compatible: bool) -> None:
    """Raises UsageError for a prompt without a word."""
    for prompt in prompts:
        not_empty([prompt], compatible)


def not_empty(prompts: Sequence[str], compatible: bool) -> list[str]:
    """The prompts that have a word after cleaning. Raises UsageError if none has."""
    kept, why = [], ""
    for prompt in prompts:
        try:
            clean_prompt(prompt, compatible=compatible)
            kept.append(prompt)
        except UserError as error:
            why = why or str(error)
    if why and not kept:
        raise UsageError(why)
    return kept


def make_folder(folder: Path) -> Path:
    """Creates the folder if needed. Raises UsageError where a file has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out {folder}: a file is in the way; choose another folder") from None
    return folder
