"""Maps of some prompts beside those of their counterfactuals, for the page: examples.npz and examples.json."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from afloc_jax.evaluation.counterfactual.metrics import KINDS
from afloc_jax.evaluation.counterfactual.questions import Question
from afloc_jax.evaluation.files import read_pictures, write_pictures
from afloc_jax.evaluation.localization.samples import Part
from afloc_jax.files import AnyPath, Path
from afloc_jax.inference.model import Model
from afloc_jax.inference.overlays import overlay


@dataclass(frozen=True)
class Example:
    """A counterfactual: its kind, the sample, both prompts, and whether the map moved as it should."""

    kind: str
    id: str
    prompt: str
    counterfactual: str
    moved: bool


@dataclass(frozen=True)
class Picture:
    """An example with the overlays of both maps, and the mask of the finding; it is empty in another image."""

    example: Example
    overlays: Sequence[tuple[UInt8[np.ndarray, "S S 3"], Bool[np.ndarray, "S S"], str]]


def choose(asked: Sequence[Question], moved: Float[np.ndarray, " q"]) -> list[tuple[Question, bool]]:
    """For every kind the first counterfactual whose map moved as it should (1), and the first whose map did not (0)."""
    chosen = []
    for kind in KINDS:
        for outcome in (1.0, 0.0):
            pairs = zip(asked, moved, strict=True)
            first = next(
                (question for question, value in pairs if question.kind == kind.name and value == outcome), None
            )
            if first is not None:
                chosen.append((first, bool(outcome)))
    return chosen


def write_examples(
    out: AnyPath, model: Model, part: Part, chosen: Sequence[tuple[Question, bool]], compatible: bool = False
) -> None:
    """Writes the examples with their images, maps and masks."""
    images, maps, truths, examples = [], [], [], []
    for question, moved in chosen:
        truth, row = part.truths[question.sample], int(part.rows[question.sample])
        prompts = truth.label_text, question.prompt
        both = np.stack([part.source[row].image, part.source[question.row].image])
        images.append(both)
        maps.append(model.heatmaps_of_squares(both, prompts, compatible=compatible))
        truths.append(truth.mask > 0)
        examples.append(Example(question.kind, truth.id, *prompts, moved))
    arrays = {"images": np.stack(images), "heatmaps": np.stack(maps), "truths": np.stack(truths)} if images else {}
    write_pictures(out, arrays, [asdict(example) for example in examples])


def read_examples(folder: Path) -> Iterator[Picture]:
    """The examples of a result folder; none if it has no files of them."""
    described, arrays = read_pictures(folder)
    for k, entry in enumerate(described):
        example, truth = Example(**entry), arrays["truths"][k]
        shown = truth if example.kind != "other_image" else np.zeros_like(truth)
        images, maps = arrays["images"][k], arrays["heatmaps"][k].astype(np.float32)
        drawn = [overlay(image, heatmap) for image, heatmap in zip(images, maps, strict=True)]
        yield Picture(example, [(drawn[0], truth, example.prompt), (drawn[1], shown, example.counterfactual)])
