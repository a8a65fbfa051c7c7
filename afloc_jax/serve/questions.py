"""Questions to the process that answers, its answers, and how both are written into its pipes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO


@dataclass(frozen=True)
class Question:
    """What is asked of an image.

    Attributes:
        route: picture, localize or classify.
        texts: phrases or names of classes.
        threshold: of the boxes.
        dicom: whether the file is DICOM, also without its usual header.
        prompts: the prompt set by which classes are asked for; "" for the fallback phrases alone.
    """

    route: str
    texts: tuple[str, ...] = ()
    threshold: float = 0.0
    dicom: bool = False
    prompts: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer: the status of HTTP, and JSON."""

    status: int
    content: bytes


@dataclass(frozen=True)
class About:
    """What the page says about a model.

    Attributes:
        model: the name of the model.
        drawings: whether it was trained on drawings alone.
        colours: the colour scale, 256 colours.
        opacity: the opacity at the maximum of a map.
        version: changes when the files of the model do.
        prompt_sets: names of prompt sets of this package.
    """

    model: str
    drawings: bool
    colours: tuple[str, ...]
    opacity: float
    version: str = ""
    prompt_sets: tuple[str, ...] = ()


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
    return Question(**{**head, "texts": tuple(head["texts"])}), data


def write_answer(pipe: IO[bytes], answer: Answer) -> None:
    """Writes an answer."""
    _write(pipe, {"status": answer.status}, [answer.content])


def read_answer(pipe: IO[bytes]) -> Answer:
    """The next answer. Raises EOFError if the pipe ends before."""
    line = pipe.readline()
    head = json.loads(line) if line.endswith(b"\n") else {"status": 0, "bytes": 1}
    content = pipe.read(head["bytes"])
    if len(content) < head["bytes"]:
        raise EOFError
    return Answer(head["status"], content)


def _write(pipe: IO[bytes], head: dict[str, object], parts: Sequence[bytes]) -> None:
    pipe.write(json.dumps({**head, "bytes": sum(map(len, parts))}).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()
