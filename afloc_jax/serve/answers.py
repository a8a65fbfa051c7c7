"""Answers to questions about one image, from a loaded model."""

import contextlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from afloc_jax.errors import UserError
from afloc_jax.inference.class_prompts import SETS, PromptSet, read_prompt_set
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.model import Model
from afloc_jax.inference.overlays import OPACITY, colour_scale, png_uri
from afloc_jax.serve.limits import Limits
from afloc_jax.serve.questions import About, Answer, Question, error
from afloc_jax.settings import Json
from data_pipelines.images import Accepted, decode_image
from data_pipelines.what_images import only_drawings, warning_on_drawings

FORMATS = ("PNG", "JPEG")  # and DICOM: fewer decoders than in the rest of the program, for files from strangers
LONGEST_SIDE = 1024  # pixels; larger pictures and maps are scaled down before they are sent


def about(model: Model, name: str, version: str) -> About:
    """What the page says about a model. `name` is for one that has none; see `About` for `version`."""
    drawings, colours = only_drawings(model.config.trained_on), tuple(colour_scale(256))
    return About(model.config.name or name, drawings, colours, OPACITY, version, SETS)


def answer(model: Model, question: Question, data: bytes, limits: Limits, *, debug: bool = False) -> Answer:
    """The answer to a question about the image in `data`; see `app` for the addresses and their answers.

    With `debug` the traceback of a defect is printed, which may contain a phrase.
    """
    try:
        accepted = Accepted(FORMATS, limits.pixels, limits.body)
        with memory_for(limits.decoding):
            name = "image.dcm" if question.dicom else "image"
            pixels = decode_image(data, name, model.config.preprocessing.grey, accepted)
        return Answer(200, json.dumps(ANSWERS[question.route](model, pixels, question)).encode())
    except UserError as problem:
        return error(400, str(problem))
    except Exception as problem:  # a defect; its message may contain the user's input, so it is not logged
        if debug:
            traceback.print_exc()
        name = type(problem).__name__
        return error(500, f"internal error, {name}; start afloc serve with --debug to see where")


@contextlib.contextmanager
def memory_for(most: int) -> Iterator[None]:
    """Lets this process take `most` bytes more. Decoders of strange files then end in an error of memory.

    Only Linux says how much a process has; elsewhere there is no such bound.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + most
    limits = [limit for limit in (wanted, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _picture(model: Model, pixels: UInt8[np.ndarray, "H W"], question: Question) -> dict[str, Json]:
    height, width = pixels.shape
    warning = warning_on_drawings(model.config.trained_on, height, width)
    return {"width": width, "height": height, "picture": png_uri(_shown(pixels)), "warning": warning}


def _localize(model: Model, pixels: UInt8[np.ndarray, "H W"], question: Question) -> dict[str, Json]:
    found = model.localize([pixels], question.texts, question.threshold)[0][::-1]
    described: list[Json] = []
    while found:  # each map at original size is let go before the next one is made
        described.append(_described(found.pop()))
    about: dict[str, Json] = {"calibrated": model.calibration is not None, "threshold": question.threshold}
    return {**_picture(model, pixels, question), **about, "prompts": described}


def _described(found: Localization) -> dict[str, Json]:
    """The result of one prompt as JSON. The map is an 8-bit picture: 0 and 255 are its `lowest` and `highest` value."""
    low, high = float(found.heatmap.min()), float(found.heatmap.max())
    heat = (_shown(found.heatmap) - low) / (high - low) if high > low else np.zeros_like(_shown(found.heatmap))
    return {
        "prompt": found.prompt,
        "similarity": found.similarity,
        "present": found.present,
        "absent": found.is_absent,
        "boxes": found.boxes.tolist(),
        "lowest": low,
        "highest": high,
        "heatmap": png_uri(np.rint(255 * heat.clip(0, 1)).astype(np.uint8)),
        "unknown_words": [*found.unknown_words],
        "truncated": found.truncated,
    }


def _classify(model: Model, pixels: UInt8[np.ndarray, "H W"], question: Question) -> dict[str, Json]:
    model.read_prompts(question.texts)  # refuses an empty name
    prompts = read_prompt_set(question.prompts or None)
    (probabilities,), (present,) = model.classify_squares(model.square_of(pixels)[0][None], question.texts, prompts)
    return {
        "calibrated": model.calibration is not None,
        "classes": [
            {"class": name, "probability": float(p), "present": there, **_understood(model, prompts, name)}
            for name, p, there in zip(question.texts, probabilities, present, strict=True)
        ],
    }


def _understood(model: Model, prompts: PromptSet, name: str) -> dict[str, Json]:
    """The unknown words of the phrases of a class, and whether the end of one is not read."""
    readings = model.examine([phrase for side in prompts.prompts(name) for phrase in side])
    unknown = dict.fromkeys(word for reading in readings for word in reading.unknown_words)
    return {"unknown_words": [*unknown], "truncated": any(reading.truncated for reading in readings)}


def _shown(picture: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "h w"]:
    """The picture [H, W], scaled down so that no side is longer than LONGEST_SIDE."""
    height, width = picture.shape
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


ANSWERS = {"picture": _picture, "localize": _localize, "classify": _classify}
