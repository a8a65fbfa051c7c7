"""Answers to questions about one image, from a loaded model."""

import contextlib
import dataclasses
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from afloc_jax.errors import UserError
from afloc_jax.inference.class_prompts import SETS, PromptSet, read_prompt_set
from afloc_jax.inference.figures import BOX, OPACITY, figure, hex_colours, hexadecimal, short
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.model import Model
from afloc_jax.inference.overlays import png_uri
from afloc_jax.serve.limits import Limits
from afloc_jax.serve.questions import SIDE, About, AboutModel, Answer, Look, Question, error
from afloc_jax.settings import Json
from data_pipelines.dicom import spacing_in
from data_pipelines.images import Accepted, decode_image, encode_png
from data_pipelines.what_images import only_drawings, warning_on_drawings

FORMATS = ("PNG", "JPEG")  # and DICOM: fewer decoders than in the rest of the program, for files from strangers
_SAMPLE = 0, "test", 83  # a phantom with two findings, which no training has seen
_OTHER_SAMPLE_PHRASE = "small left apical pneumothorax"  # which it does not show


def about(models: Sequence[Model], names: Sequence[str], versions: Sequence[str]) -> About:
    """What the page says about models. `names` are for those that have none; see `AboutModel` for `versions`."""
    from data_pipelines.builders.phantom import generate

    own = [model.config.name or name for model, name in zip(models, names, strict=True)]
    if len({*own}) < len(own):  # two runs of a recipe
        own = [f"{one} ({name})" if one != name else name for one, name in zip(own, names, strict=True)]
    described = [
        AboutModel(
            name,
            only_drawings(model.config.trained_on),
            model.calibration is not None,
            tuple(model.config.trained_on),
            model.weights_sha256,
            version,
            model.heatmap_settings.sharpen,
            model.prune,
            model.windows,
        )
        for model, name, version in zip(models, own, versions, strict=True)
    ]
    drawn = generate(*_SAMPLE)
    return About(
        tuple(described),
        tuple(hex_colours(256)),
        OPACITY,
        hexadecimal(BOX),
        {name: _plain(read_prompt_set(name)) for name in SETS},
        png_uri(drawn.image),
        (drawn.findings[0].prompt, _OTHER_SAMPLE_PHRASE),
    )


def answer(models: Sequence[Model], question: Question, data: bytes, limits: Limits, *, debug: bool = False) -> Answer:
    """The answer to a question about the image in `data`; see `app` for the addresses and their answers.

    With `debug` the traceback of a defect is printed, which may contain a phrase.
    """
    try:
        model = models[question.model]
        accepted = Accepted(FORMATS, limits.pixels, limits.body)
        with memory_for(limits.decoding):
            name = "image.dcm" if question.dicom else "image"
            pixels = decode_image(data, name, model.config.preprocessing.grey, accepted)
        if question.route == "overlay":
            return Answer(200, _overlay(model, pixels, question), "image/png")
        content = ANSWERS[question.route](model, pixels, question)
        if question.route == "localize" and (question.dicom or data[128:132] == b"DICM"):
            content["mm_per_pixel"] = _spacing(data)
        return Answer(200, json.dumps(content).encode())
    except UserError as problem:
        return error(400, str(problem))
    except Exception as problem:  # a defect; its message may contain the user's input, so it is not logged
        if debug:
            traceback.print_exc()
        name = type(problem).__name__
        return error(500, f"internal error, {name}; start afloc serve with --debug to see where")
    finally:
        for one in models:
            one.forget_images()  # as the page promises


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
    return {"width": width, "height": height, "picture": png_uri(_shown(pixels, question.side)), "warning": warning}


def _localize(model: Model, pixels: UInt8[np.ndarray, "H W"], question: Question) -> dict[str, Json]:
    found = model.localize([pixels], question.texts, question.threshold)[0][::-1]
    described: list[Json] = []
    while found:  # each map at original size is let go before the next one is made
        described.append(_described(found.pop()))
    about: dict[str, Json] = {
        "calibrated": model.calibration is not None,
        "threshold": question.threshold,
        "mm_per_pixel": None,
    }
    return {**_picture(model, pixels, question), **about, "prompts": described}


def _described(found: Localization) -> dict[str, Json]:
    """The result of one prompt as JSON. The map is an 8-bit picture: 0 and 255 are its `lowest` and `highest` value."""
    low, high = float(found.heatmap.min()), float(found.heatmap.max())
    small = _shown(found.heatmap)
    heat = (small - low) / (high - low) if high > low else np.zeros_like(small)
    return {
        **found.as_dict(),
        "cut": found.cut,
        "lowest": low,
        "highest": high,
        "heatmap": png_uri(np.rint(255 * heat.clip(0, 1)).astype(np.uint8)),
    }


def _overlay(model: Model, pixels: UInt8[np.ndarray, "H W"], question: Question) -> bytes:
    """The image at its original size with the map of a phrase and a caption, as `afloc localize` writes it."""
    (text,), look = question.texts, question.look
    (found,) = model.localize([pixels], [text], question.threshold)[0]
    caption, place = found.caption, found.placed
    facts = [*caption.facts]
    if look.lowest is not None and look.highest is not None:
        caption = dataclasses.replace(caption, lowest=look.lowest, highest=look.highest, cut=found.cut)
        facts.append(f"threshold {short(found.cut)}")
    if (look.black, look.white) != (0, 255):
        pixels = _windowed(pixels, look)
        facts.append(f"grey values {look.black:.0f} to {look.white:.0f} of 255")
    caption = dataclasses.replace(caption, facts=[*facts, *([f"model {look.name}"] if look.name else [])])
    place = place if look.boxes else place._replace(boxes=place.boxes[:0])
    drawn = figure(pixels, place, caption, strength=look.strength)
    return encode_png(drawn[:, :, ::-1])


def _windowed(pixels: UInt8[np.ndarray, "H W"], look: Look) -> UInt8[np.ndarray, "H W"]:
    """The pixels with `look.black` as 0 and `look.white` as 255."""
    steps = (np.arange(256) - look.black) / max(look.white - look.black, 1.0)
    return np.asarray(np.rint(255 * steps.clip(0, 1)).astype(np.uint8)[pixels])


def _spacing(data: bytes) -> Json:
    """Millimetres per pixel in x and y by the header of a DICOM file; None if it does not say."""
    spacing = spacing_in(data)
    return None if spacing is None else [spacing[1], spacing[0]]


def _classify(model: Model, pixels: UInt8[np.ndarray, "H W"], question: Question) -> dict[str, Json]:
    model.read_prompts(question.texts)  # refuses an empty name
    prompts = read_prompt_set(question.prompts or None)
    found = model.classify([pixels], question.texts, prompts)
    return {
        "calibrated": model.calibration is not None,
        "classes": [
            {"class": name, "probability": float(p), "present": there, **_understood(model, prompts, name)}
            for name, p, there in zip(question.texts, found[0], found.present[0], strict=True)
        ],
    }


def _understood(model: Model, prompts: PromptSet, name: str) -> dict[str, Json]:
    """The unknown words of the phrases of a class, and whether the end of one is not read."""
    readings = model.examine([phrase for side in prompts.prompts(name) for phrase in side])
    unknown = dict.fromkeys(word for reading in readings for word in reading.unknown_words)
    return {"unknown_words": [*unknown], "truncated": any(reading.truncated for reading in readings)}


def _shown(picture: Shaped[np.ndarray, "H W"], side: int = SIDE) -> Shaped[np.ndarray, "h w"]:
    """The picture [H, W], scaled down so that no side is longer than `side`."""
    height, width = picture.shape
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _plain(prompts: PromptSet) -> Json:
    """The classes of a prompt set as JSON has them."""
    plain: Json = json.loads(json.dumps(dict(prompts.classes), default=dict))
    return plain


_Answering = Callable[[Model, UInt8[np.ndarray, "H W"], Question], dict[str, Json]]
ANSWERS: Mapping[str, _Answering] = {"picture": _picture, "localize": _localize, "classify": _classify}
