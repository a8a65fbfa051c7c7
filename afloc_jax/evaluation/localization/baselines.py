"""Priors: baseline maps of where findings usually are, which do not depend on the image.

The location prior is the mean mask of a category. The prompt prior is the mean mask of a prompt, which also knows what
its words say about the place ("left", "basal"). A prompt with fewer than `LEAST` masks has the prior of its category,
and a category without masks that of all findings.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Truth
from data_pipelines.reading import Records

LEAST = 5

Key: TypeAlias = tuple[str, ...]
"""What masks are averaged over: a category and prompt, a category, or (of no part) all findings."""


def keys_of(category: str, prompt: str) -> list[Key]:
    """The keys of a mask, from the most to the least specific. Prompts are compared without case and final periods."""
    return [(category, " ".join(prompt.lower().split()).rstrip(".")), (category,), ()]


class MaskMeans:
    """Mean masks by key. Only sums are kept, so that training sets of any size can be averaged."""

    def __init__(self) -> None:
        self._sums: dict[Key, np.ndarray] = {}
        self._counts: dict[Key, int] = {}

    def add(self, key: Key, mask: Shaped[np.ndarray, "S S"], present: bool = True) -> None:
        """Adds a mask, whose values above 0 are inside. A negative counts for its category, not for its prompt."""
        inside = np.asarray(mask) > 0
        self._sums[key] = self._sums[key] + inside if key in self._sums else inside.astype(np.int32)
        self._counts[key] = self.count(key) + (present or len(key) < 2)

    def count(self, key: Key) -> int:
        """The number of masks of a key."""
        return self._counts.get(key, 0)

    def mean(self, key: Key, without: Sequence[Shaped[np.ndarray, "S S"]], count: int) -> Float[np.ndarray, "S S"]:
        """The mean of the `count` masks of a key that are left without some of them."""
        left = self._sums[key] - np.sum(without, axis=0, dtype=np.int32) if len(without) else self._sums[key]
        return np.asarray(left / count, np.float32)


class Priors(ABC):
    """The location prior and the prompt prior of samples. `masks_from` describes the masks that are averaged."""

    masks_from: str

    @abstractmethod
    def _chosen(self, truths: Sequence[Truth], by_prompt: bool) -> Iterator[tuple[Key | None, np.ndarray]]:
        """The key of each sample's prior, and its map. The key is None, and the map empty, if no mask is left."""

    def maps(self, truths: Sequence[Truth], by_prompt: bool = False) -> Iterator[Float[np.ndarray, "S S"]]:
        """The prior of each sample: of its category, or `by_prompt` of its prompt."""
        return (mean for _, mean in self._chosen(truths, by_prompt))

    def rare(self, truths: Sequence[Truth]) -> int:
        """The number of samples whose prompt has fewer than `LEAST` masks, so that they get the prior of a category."""
        return sum(len(key or ()) < 2 for key, _ in self._chosen(truths, by_prompt=True))

    def about(self, what: str) -> str:
        """The description of a prior, such as that of "the category"."""
        return f"mean mask of {what} in {self.masks_from}"


class TrainingPriors(Priors):
    """Priors from the masks of training records. They do not depend on the evaluated images."""

    def __init__(self, source: Records, truths: Sequence[Truth]) -> None:
        """Reads every record once. Means are kept for the prompts of `truths` only.

        Raises UserError if the masks have another size than those of `truths`.
        """
        self._means = MaskMeans()
        wanted, shape = {keys_of(t.category, t.label_text)[0] for t in truths}, truths[0].mask.shape
        for row in range(len(source)):
            for finding in source[row].findings:
                mask = np.asarray(finding.mask)
                if mask.shape != shape:
                    raise UserError(
                        f"training masks are {mask.shape}, evaluation masks {shape}; prepare both at one size"
                    )
                prompt, *others = keys_of(finding.label, finding.prompt)
                for key in [*([prompt] if prompt in wanted else []), *others]:
                    self._means.add(key, mask)
        self.masks_from = f"{self._means.count(()):,} training masks"

    @property
    def usable(self) -> bool:
        """Whether there is any training mask."""
        return self._means.count(()) > 0

    def _chosen(self, truths: Sequence[Truth], by_prompt: bool) -> Iterator[tuple[Key | None, np.ndarray]]:
        for truth in truths:
            for key in keys_of(truth.category, truth.label_text)[0 if by_prompt else 1 :]:
                count = self._means.count(key)
                if count >= (LEAST if len(key) == 2 else 1):
                    yield key, self._means.mean(key, (), count)
                    break


class LeftOutPriors(Priors):
    """Priors from the evaluated samples, each without its own patient (its own image, where no patient is named).

    They stand in where training data have no masks, and are stronger than priors from another data set, since they come
    from the evaluated population.
    """

    def __init__(self, truths: Sequence[Truth]) -> None:
        one = "patient" if any(truth.patient for truth in truths) else "image"
        self.masks_from = f"the other evaluation images (leave one {one} out)"

    def _chosen(self, truths: Sequence[Truth], by_prompt: bool) -> Iterator[tuple[Key | None, np.ndarray]]:
        means, own = MaskMeans(), dict[tuple[Key, tuple[str, str]], list[tuple[np.ndarray, bool]]]()
        for truth in truths:
            inside = truth.mask > 0
            for key in keys_of(truth.category, truth.label_text):
                means.add(key, inside, truth.present)
                own.setdefault((key, _unit(truth)), []).append((inside, truth.present))
        for truth in truths:
            chosen: Key | None = None
            mean = np.zeros(truth.mask.shape, np.float32)
            for key in keys_of(truth.category, truth.label_text)[0 if by_prompt else 1 :]:
                same = own[key, _unit(truth)]
                left = means.count(key) - sum(present or len(key) < 2 for _, present in same)
                if left >= (LEAST if len(key) == 2 else 1):
                    chosen, mean = key, means.mean(key, [mask for mask, _ in same], left)
                    break
            yield chosen, mean


def _unit(truth: Truth) -> tuple[str, str]:
    return truth.patient, "" if truth.patient else truth.image or truth.id
