"""Localisation and classification of image files, for `afloc localize` and `afloc classify`.

An unreadable image is reported, and the other images are processed. Every file is written completely or not at all.
While a command runs, a journal beside its results says which images are done; the same command goes on from there.
"""

import dataclasses
import itertools
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import (
    AnyPath,
    Path,
    csv_lines,
    fetched,
    matching,
    sha256_of,
    user_path,
    write_json,
    write_whole,
)
from afloc_jax.inference.class_prompts import read_prompt_set
from afloc_jax.inference.films import Reading, films
from afloc_jax.inference.inputs import list_images, output_names
from afloc_jax.inference.journal import Journal, Result
from afloc_jax.inference.model import Model, load
from afloc_jax.inference.outputs import BOX_COLUMNS, UID_COLUMN, Outputs, box_rows, write_image
from afloc_jax.inference.prompt_reading import report_readings
from afloc_jax.inference.work import Done, Work
from afloc_jax.inference.zero_shot import framing_of
from afloc_jax.settings import Json
from data_pipelines.constants import Framing
from data_pipelines.reports import clean_prompt
from data_pipelines.what_images import warning_on_drawings

DEFAULT_OUTPUTS = Outputs()
RESULTS = 1  # the number grows when results change, so that no run goes on with those of an earlier version


def localize_files(
    model: AnyPath,
    images: Sequence[AnyPath],
    prompts: Sequence[str],
    out: AnyPath,
    *,
    threshold: float = 0.3,
    outputs: Outputs = DEFAULT_OUTPUTS,
    compatible: bool = False,
    strict: bool = False,
    anew: bool = False,
    sharpen: bool | None = None,
    prune: bool | None = None,
    windows: int = 1,
) -> Done:
    """Writes localize.json and boxes.csv, and maps and overlays as `outputs` says.

    Prompts that are empty after cleaning, have unknown words or do not fit are named there and on stderr; an empty one
    among others has no files.

    The files of image `a.png` and prompt k are `a.k.heatmap.npy` and `a.k.overlay.png`. Images with the same stem get
    as many folder names in front as make them distinct (`left_a.0.heatmap.npy`). A path given twice is processed once.

    Args:
        model: the model folder.
        images: image files, folders and patterns, see `inputs.list_images`.
        prompts: phrases to localise.
        out: the output folder, created if needed.
        threshold: boxes enclose the values above it on the map scaled to [-1, 1].
        outputs: the files to write.
        compatible: clean prompts, and read grey values, as the published release does.
        strict: refuse prompts that the model does not understand as a whole.
        anew: process images again that an earlier call of the same kind has done.
        sharpen, prune, windows: see `Model.with_maps`.

    Raises:
        UsageError: all prompts are empty after cleaning, or with `strict` one has a fault, or `out` is a file, or a
            folder or pattern has no image.
        UserError: the model folder is unusable.
    """
    not_empty(prompts, compatible)  # before the model is loaded, which takes seconds
    folder = make_folder(user_path(out, "--out"))
    given = list_images(images, out=folder)
    names = output_names([one.path for one in given])
    loaded = load(model).with_maps(sharpen=sharpen, prune=prune, windows=windows)
    readings = loaded.examine(prompts, compatible=compatible, prune=loaded.prune)
    report_readings(readings, strict)
    asked = [reading.given for reading in readings if reading.text]
    kind: dict[str, Json] = {
        "prompts": [*prompts],
        "threshold": threshold,
        "map": "square" if outputs.square else "original",
        "compatible": compatible,
        "sharpen": loaded.heatmap_settings.sharpen,
        "prune": loaded.prune,
        "windows": windows,
    }
    call = {"command": "localize", **kind, **dataclasses.asdict(outputs), **_identity(model, loaded)}
    with Journal(folder / "localize.jsonl", call, anew=anew) as journal:
        work = Work(given, journal, lambda result: files_are_there(folder, result))
        wanted = [(one.path, outputs.reading(one.singly, compatible)) for one in work.left]
        for batch in films(loaded, wanted, work.done.failed):
            squares, geometries = np.stack([film.square for film in batch]), [film.geometry for film in batch]
            found = loaded.localize_squares(squares, geometries, asked, threshold, compatible)
            for film, of_image in zip(batch, found, strict=True):
                singly = work.singly[film.path]
                try:
                    entry = write_image(folder, names[film.path], film, singly, outputs, readings, of_image)
                except UserError as error:
                    work.done.failed.append(str(error))
                    print(f"afloc: {error}", file=sys.stderr)
                else:
                    work.add(film, entry)
        content: Result = {
            "model": _described(model, loaded),
            "map": kind["map"],
            "compatible": compatible,
            "sharpen": kind["sharpen"],
            "prune": kind["prune"],
            "windows": windows,
            "calibrated": loaded.calibration is not None,
        }
        columns = [*BOX_COLUMNS, *([UID_COLUMN] if outputs.uids else [])]
        rows = (row for entry in work.results() for row in box_rows(entry, outputs.uids))
        write_whole(folder / "boxes.csv", csv_lines(itertools.chain([columns], rows)))
        write_whole(folder / "localize.json", _json_parts(content, work.results(), work.done.failed))
        warn_of_drawings(sum("warning" in entry for entry in work.results()), work.done.now + work.done.before)
        return work.finish()


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
    anew: bool = False,
) -> Done:
    """Writes a CSV with a row per image and a column per class, and a JSON file of that name with model and prompts.

    Phrases that are empty after cleaning, have unknown words or do not fit are named there and on stderr; an empty one
    among others of its class is left out.

    Args:
        model: the model folder.
        images: image files, folders and patterns, see `inputs.list_images`.
        classes: names of classes; by default those of `prompts`.
        out: the CSV file.
        prompts: a JSON file or the name of a prompt set, see `afloc_jax.inference.class_prompts`.
        compatible: clean prompts as the published release does.
        framing: "pad" or "crop", see `Model.classify`. None stands for "crop" if `compatible`, else for "pad".
        aggregation: "mean" or "max", see `Model.classify`.
        strict: refuse phrases that the model does not understand as a whole.
        anew: process images again that an earlier call of the same kind has done.

    Raises:
        UsageError: there is no class, or one has neither a word nor phrases, or the prompt set is unusable, or with
            `strict` a phrase has a fault, or a folder or pattern has no image.
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
    given = list_images(images)
    loaded = load(model)
    every = dict.fromkeys(phrase for sides in phrases.values() for side in sides for phrase in side)
    readings = loaded.examine([*every], compatible=compatible)
    report_readings(readings, strict)
    if any(not reading.text for reading in readings):
        prompt_set = dataclasses.replace(prompt_set, classes=used)
    how: dict[str, Json] = {"framing": framing, "aggregation": aggregation, "compatible": compatible}
    listing: Result = prompt_set.listing(classes)
    call = {"command": "classify", **how, "prompts": listing, "multiclass": prompt_set.multiclass}
    with Journal(target.with_suffix(".jsonl"), {**call, **_identity(model, loaded)}, anew=anew) as journal:
        work = Work(given, journal)
        # The release classifies what Pillow reads, and so does `compatible` here.
        for batch in films(loaded, [(one.path, Reading(framing)) for one in work.left], work.done.failed):
            squares = np.stack([film.square for film in batch])
            scores, judged = loaded.classify_squares(squares, classes, prompt_set, compatible, framing, aggregation)
            for film, row, present in zip(batch, scores, judged, strict=True):
                warning = warning_on_drawings(loaded.config.trained_on, film.geometry.height, film.geometry.width)
                named = dict(zip(classes, present, strict=True))
                work.add(film, {"scores": [f"{p:.6f}" for p in row], "present": named, "warning": bool(warning)})
        rows = ([entry["image"], *entry["scores"]] for entry in work.results())
        write_whole(target, csv_lines(itertools.chain([["image", *classes]], rows)))
        content: Result = {
            "model": _described(model, loaded),
            **how,
            "prompt_set": prompt_set.name,
            "prompts": listing,
            "multiclass": prompt_set.multiclass,
            "unknown_words": {reading.given: [*reading.unknown_words] for reading in readings if reading.unknown_words},
            "truncated": [reading.given for reading in readings if reading.truncated],
            "empty": [reading.given for reading in readings if not reading.text],
            "calibrated": loaded.calibration is not None,
            "present": {one["image"]: one["present"] for one in work.results()} if loaded.calibration else None,
            "failed": work.done.failed,
        }
        # Images of other kinds, if the model has seen drawings alone.
        if not_drawn := [entry["image"] for entry in work.results() if entry["warning"]]:
            content["trained_on_drawings_but_these_are_none"] = not_drawn
        write_json(target.with_suffix(".json"), content)
        warn_of_drawings(len(not_drawn), work.done.now + work.done.before)
        return work.finish()


def files_are_there(folder: Path, entry: Result) -> bool:
    """Whether the files that an entry of localize.json names exist."""
    names = [prompt.get(kind) for prompt in entry["prompts"] for kind in ("heatmap", "overlay", "capture")]
    names.append(entry.get("segmentation"))
    return all((folder / name).is_file() for name in names if name)


def _identity(folder: AnyPath, model: Model) -> dict[str, Json]:
    """What identifies a model in the journal: its weights, and the settings beside them."""
    settings: dict[str, Json] = {path.name: sha256_of(path) for path in matching(fetched(folder), "*.json")}
    return {"weights": model.weights_sha256, "settings": settings, "results": RESULTS}


def _json_parts(content: Result, images: Iterable[Result], failed: list[str]) -> Iterator[str]:
    """An object in JSON with the keys of `content`, and "images" and "failed", in parts."""
    yield json.dumps(content, indent=2, ensure_ascii=False)[:-2] + ',\n  "images": ['
    separator = "\n"
    for entry in images:
        yield separator + textwrap.indent(json.dumps(entry, indent=2, ensure_ascii=False), "    ")
        separator = ",\n"
    end = json.dumps({"failed": failed}, indent=2, ensure_ascii=False)
    yield ("],\n" if separator == "\n" else "\n  ],\n") + end[2:] + "\n"


def _described(folder: AnyPath, model: Model) -> dict[str, Json]:
    """The model in the JSON files."""
    trained_on: list[Json] = [*model.config.trained_on]
    return {"folder": str(folder), "weights_sha256": model.weights_sha256, "trained_on": trained_on}


def warn_of_drawings(warned: int, images: int) -> None:
    """Says on stderr that images are none of the drawings that a model was trained on."""
    if warned:
        print(
            "afloc: warning: the model was trained on drawings of chests (phantoms) alone, and "
            f"{warned} of {images} images {'are' if warned > 1 else 'is'} none: on images of patients its maps, boxes "
            "and numbers mean nothing",
            file=sys.stderr,
        )


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
