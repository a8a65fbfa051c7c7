"""The counterfactuals of every finding of a data set: what is asked instead, of which image, and where it should lead.

side, zone        the other side or zone in the same image; it is true of the image if the class is shown there too
negation          "no ..." in the same image
absent_finding    in the same image a prompt for a class that it is known to lack, with the same side if there is one
other_image       the same prompt in an image of another patient (chosen as for the baseline `shuffled_image` of
                  localisation) that is not known to show the class
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Shaped

from afloc_jax.evaluation.counterfactual.metrics import KINDS
from afloc_jax.evaluation.counterfactual.rewriting import SIDES, ZONES, Places, negate
from afloc_jax.evaluation.labelled import NORMAL, LabelledRecords, own_phrases
from afloc_jax.evaluation.localization.samples import Part, partners
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.inference.class_prompts import class_key, find_class

LEAST_SHARE = 0.25  # a finding lies in a half of the image if this share of its pixels does
TRIES = 8  # other images that are tried until one does not show the class
LATERAL = ("l", "ll", "rl")  # views without a left and a right half; so are all with "lat" in their name


@dataclass(frozen=True)
class Question:
    """One counterfactual of a sample.

    Attributes:
        sample: the index of the sample.
        kind: the name of its kind, see `KINDS`.
        prompt: what is asked.
        row: the row of the image in the source.
        half: the half of the image that the prompt names, see `half_of`; None if it names none.
        true: whether the counterfactual is true of the image: its finding lies in that half too.
    """

    sample: int
    kind: str
    prompt: str
    row: int
    half: Bool[np.ndarray, "S S"] | None = None
    true: bool = False


@dataclass(frozen=True)
class Questions:
    """All counterfactuals, and for every kind the number of samples without one, by reason."""

    asked: Sequence[Question]
    not_applicable: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Shown:
    """The classes that each image of a source is known to show, and to lack."""

    present: Sequence[frozenset[str]]
    absent: Sequence[Sequence[str]]

    @classmethod
    def of(cls, part: Part, records: LabelledRecords) -> "Shown":
        """From labels and from the findings that are scored. An image that shows a class does not lack it."""
        present: list[set[str]] = [set() for _ in part.about]
        for row, truth in zip(part.rows.tolist(), part.truths, strict=True):
            present[row].add(class_key(truth.category))
        absent: list[list[str]] = [[] for _ in part.about]
        for row, labels in zip(records.rows.tolist(), records.labels, strict=True):
            present[row] |= {name for name, label in zip(records.classes, labels, strict=True) if label == 1}
            lacked = [name for name, label in zip(records.classes, labels, strict=True) if label == 0]
            absent[row] = [name for name in lacked if name not in NORMAL and not find_class(name, present[row])]
        return cls([frozenset(names) for names in present], absent)


def questions_of(part: Part, records: LabelledRecords, chosen: Sequence[int], seed: int = 0) -> Questions:
    """The counterfactuals of the chosen samples, in their order. The same seed gives the same ones."""
    shown, rng = Shown.of(part, records), np.random.default_rng(seed)
    phrases = own_phrases(part.source)
    everywhere = np.arange(len(part.about))
    others = [partners(everywhere, part.about, seed + number) for number in range(TRIES)]
    same = findings_by_class(part)
    asked: list[Question] = []
    reasons: dict[str, Counter[str]] = {kind.name: Counter() for kind in KINDS}
    for index in chosen:
        sample = _Sample(index, int(part.rows[index]), part.truths[index])
        masks = [part.truths[k].mask for k in same[sample.row, sample.truth.category]]
        negated = negate(sample.truth.label_text)
        found = {
            "side": _elsewhere(sample, SIDES, masks, part),
            "zone": _elsewhere(sample, ZONES, masks, part),
            "negation": sample.question("negation", negated.text) if negated.text else negated.why,
            "absent_finding": _absent(sample, shown, phrases, rng),
            "other_image": _on_another_image(sample, shown, [other.get(sample.row) for other in others]),
        }
        for kind, question in found.items():
            if isinstance(question, Question):
                asked.append(question)
            else:
                reasons[kind][question] += 1
    return Questions(asked, {name: dict(counts.most_common()) for name, counts in reasons.items()})


def findings_by_class(part: Part) -> dict[tuple[int, str], list[int]]:
    """The samples of each row and category."""
    same: dict[tuple[int, str], list[int]] = {}
    for k, (row, truth) in enumerate(zip(part.rows.tolist(), part.truths, strict=True)):
        same.setdefault((row, truth.category), []).append(k)
    return same


def half_of(name: str, place: int, size: int) -> Bool[np.ndarray, "size size"]:
    """The half of a frontal image that a word names; the middle line of an odd size is in neither.

    Args:
        name: "side" or "zone".
        place: 0 for left and upper, 1 for right and lower. The patient's left is the image's right half.
        size: the side of the square in pixels.

    >>> half_of("side", place=0, size=2).astype(int)
    array([[0, 1],
           [0, 1]])
    >>> half_of("zone", place=0, size=2).astype(int)
    array([[1, 1],
           [0, 0]])
    """
    from_middle = np.arange(size) - (size - 1) / 2  # to the right, or down
    if name == "side":
        return np.broadcast_to((from_middle > 0 if place == 0 else from_middle < 0)[None], (size, size))
    return np.broadcast_to((from_middle < 0 if place == 0 else from_middle > 0)[:, None], (size, size))


def lying_in(
    masks: Sequence[Shaped[np.ndarray, "S S"]], half: Bool[np.ndarray, "S S"]
) -> Bool[np.ndarray, "S S"] | None:
    """The pixels within a half of the findings that lie there (`LEAST_SHARE` of their pixels); None if none does."""
    inside = [mask > 0 for mask in masks]
    there = [mask & half for mask in inside if (mask & half).sum() >= max(1, LEAST_SHARE * mask.sum())]
    return np.any(there, axis=0) if there else None


@dataclass(frozen=True)
class _Sample:
    """A finding: its index, the row of its image, and its truth."""

    index: int
    row: int
    truth: Truth

    def question(self, kind: str, prompt: str) -> Question:
        """A counterfactual in the same image."""
        return Question(self.index, kind, prompt, self.row)


# The functions below return a counterfactual, or the reason why there is none.


def _elsewhere(sample: _Sample, places: Places, masks: Sequence[np.ndarray], part: Part) -> Question | str:
    """The other side or zone. `masks`: the findings of the class in the image."""
    rewritten = places.other(sample.truth.label_text)
    if not rewritten.text:
        return rewritten.why
    if places is SIDES and is_lateral(part.source[sample.row].view):
        return "is a lateral view"
    half = half_of(places.name, rewritten.place, sample.truth.mask.shape[0])
    question = sample.question(places.name, rewritten.text)
    return replace(question, half=half, true=lying_in(masks, half) is not None)


def is_lateral(view: str) -> bool:
    """Whether a view has no left and no right half: one of `LATERAL`, or with "lat" in its name."""
    return view.lower() in LATERAL or "lat" in view.lower()


def _absent(
    sample: _Sample, shown: Shown, phrases: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> Question | str:
    """A phrase of the data set for a random class that the image lacks; the name of a class without phrases."""
    lacked = shown.absent[sample.row]
    if not lacked:
        return "is not known to lack a class"
    name = lacked[int(rng.integers(len(lacked)))]
    known = find_class(name, phrases)
    worded = [name] if known is None else phrases[known]
    side = SIDES.named(sample.truth.label_text)
    alike = [text for text in worded if SIDES.named(text) == side] or worded
    return sample.question("absent_finding", alike[int(rng.integers(len(alike)))])


def _on_another_image(sample: _Sample, shown: Shown, others: Sequence[int | None]) -> Question | str:
    """The same prompt on the first of the other images that is not known to show the class."""
    for other in others:
        if other is not None and find_class(sample.truth.category, shown.present[other]) is None:
            return replace(sample.question("other_image", sample.truth.label_text), row=other)
    return "has no other image without the class"
