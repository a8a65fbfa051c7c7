"""Questions to the process that answers, its answers, and how both are written into its pipes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO

from afloc_jax.settings import Json

SIDE = 1024  # pixels; larger pictures and maps are scaled down to it before they are sent


@dataclass(frozen=True)
class Look:
    """How a picture that is kept shows a map.

    Attributes:
        lowest, highest: the values at the ends of the colour bar; None for the threshold and the map's own maximum.
        black, white: the grey values of the image that are shown black and white.
        strength: a factor of the opacity of colours.
        boxes: whether boxes are drawn.
        name: the name of the model, which the caption says.
    """

    lowest: float | None = None
    highest: float | None = None
    black: float = 0.0
    white: float = 255.0
    strength: float = 1.0
    boxes: bool = True
    name: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked of an image.

    Attributes:
        route: picture, localize, classify or overlay.
        texts: phrases or names of classes.
        threshold: of the boxes.
        dicom: whether the file is DICOM, also without its usual header.
        prompts: the prompt set by which classes are asked for; "" for the fallback phrases alone.
        model: the number of the model, from 0.
        side: the longest side of the picture that is sent.
        look: of an overlay.
    """

    route: str
    texts: tuple[str, ...] = ()
    threshold: float = 0.0
    dicom: bool = False
    prompts: str = ""
    model: int = 0
    side: int = SIDE
    look: Look = Look()


@dataclass(frozen=True)
class Answer:
    """An answer: the status of HTTP, and JSON or what `kind` says."""

    status: int
    content: bytes
    kind: str = "application/json"


@dataclass(frozen=True)
class AboutModel:
    """What the page says about a model.

    Attributes:
        name: the name of the model.
        drawings: whether it was trained on drawings alone.
        calibrated: whether it tells presence.
        trained_on: the data sets of its training.
        weights_sha256: what identifies its weights.
        version: changes when the files of the model do.
        sharpen, prune, windows: how its maps are made, see `Model.with_maps`.
    """

    name: str
    drawings: bool = False
    calibrated: bool = False
    trained_on: tuple[str, ...] = ()
    weights_sha256: str = ""
    version: str = ""
    sharpen: bool = False
    prune: bool = False
    windows: int = 1


@dataclass(frozen=True)
class About:
    """What the page says about the models, and what it offers.

    Attributes:
        models: one or two.
        colours: of the colour bar, 256 in hexadecimal.
        opacities: of colours, at both ends of the bar.
        box: the colour of boxes.
        prompt_sets: the prompt sets of this package: name -> class -> its phrases or word lists.
        sample: a drawing of a chest as a data URL, with which the page can be tried.
        sample_phrases: phrases that it shows.
    """

    models: tuple[AboutModel, ...]
    colours: tuple[str, ...] = ()
    opacities: tuple[float, ...] = (0.0, 1.0)
    box: str = "#000000"
    prompt_sets: Mapping[str, Json] = field(default_factory=dict)
    sample: str = ""
    sample_phrases: tuple[str, ...] = ()


def read_about(content: bytes) -> About:
    """The inverse of `asdict` and JSON."""
    given = json.loads(content)
    given["models"] = [AboutModel(**{**one, "trained_on": tuple(one["trained_on"])}) for one in given["models"]]
    for key, value in given.items():
        given[key] = tuple(value) if isinstance(value, list) else value
    return About(**given)


def error(status: int, message: str) -> Answer:
    """An error in one line."""
    return Answer(status, json.dumps({"error": " ".join(message.split())}).encode())


def write_question(pipe: IO[bytes], question: Question, parts: Sequence[bytes]) -> None:
    """Writes a question and the parts of its file."""
    _write(pipe, asdict(question), parts)


def read_question(pipe: IO[bytes]) -> tuple[Question, bytes] | None:
    """The next question and its file; None when there will be none."""
    head = json.loads(pipe.readline() or "null")
    if head is None:
        return None
    data = pipe.read(head.pop("bytes"))
    return Question(**{**head, "texts": tuple(head["texts"]), "look": Look(**head["look"])}), data


def write_answer(pipe: IO[bytes], answer: Answer) -> None:
    """Writes an answer."""
    _write(pipe, {"status": answer.status, "kind": answer.kind}, [answer.content])


def read_answer(pipe: IO[bytes]) -> Answer:
    """The next answer. Raises EOFError if the pipe ends before."""
    line = pipe.readline()
    head = json.loads(line if line.endswith(b"\n") else '{"status": 0, "bytes": 1, "kind": ""}')
    content = pipe.read(head["bytes"])
    if len(content) < head["bytes"]:
        raise EOFError
    return Answer(head["status"], content, head["kind"])


def _write(pipe: IO[bytes], head: dict[str, object], parts: Sequence[bytes]) -> None:
    pipe.write(json.dumps({**head, "bytes": sum(map(len, parts))}).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()
