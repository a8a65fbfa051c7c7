"""Zero-shot classification: the probabilities of classes in images, and what a notebook shows of them."""

from collections.abc import Mapping, Sequence
from typing import Self, TypeAlias

import numpy as np
from jaxtyping import Float

from afloc_jax.inference.class_prompts import ClassPhrases, PromptSet, read_prompt_set
from afloc_jax.inference.notebook import table_html

Prompts: TypeAlias = str | Mapping[str, ClassPhrases] | PromptSet | None
_MOST = 100  # rows that a notebook shows


class Probabilities(np.ndarray):
    """[images, classes] float32: the zero-shot probability of each class in each image. A notebook shows a table.

    It is an array: what is taken or computed from it is a plain one.

    Attributes:
        classes: the names of the columns.
        present: for each image the calibrated probability that each class is present, see
            `afloc_jax.inference.presence`; None where that is not calibrated.
        warnings: what to know of these numbers, such as words that the model does not know.

    >>> found = Probabilities.of(np.array([[0.25, 0.5]]), ["edema", "nodule"], [[0.125, None]])
    >>> found[0, 1], found.classes, found.present
    (np.float32(0.5), ('edema', 'nodule'), [[0.125, None]])
    >>> type(found > 0.3), type(found[0])
    (<class 'numpy.ndarray'>, <class 'numpy.ndarray'>)
    """

    classes: tuple[str, ...]
    present: list[list[float | None]]
    warnings: tuple[str, ...]

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "I C"],
        classes: Sequence[str],
        present: Sequence[Sequence[float | None]],
        warnings: Sequence[str] = (),
    ) -> Self:
        """The probabilities of I images and C classes.

        >>> Probabilities.of(np.array([[0.25, 0.5]]), ["edema", "nodule"], [[None, None]]).shape
        (1, 2)
        """
        found = np.asarray(values, np.float32).view(cls)
        found.classes, found.warnings = tuple(classes), tuple(warnings)
        found.present = [list(row) for row in present]
        return found

    def __array_finalize__(self, obj: object) -> None:
        self.classes, self.present, self.warnings = (), [], ()

    def __array_wrap__(self, array, context=None, return_scalar=False):  # type: ignore[no-untyped-def]
        """Results of NumPy's functions are plain."""
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __reduce__(self):  # type: ignore[no-untyped-def]
        """What is read from a pickle has the attributes."""
        return type(self).of, (np.asarray(self), self.classes, self.present, self.warnings)

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        return np.asarray(self)[key]

    def _repr_html_(self) -> str | None:
        if not self.classes:
            return None
        rows = [
            [str(i), *(_cell(p, there) for p, there in zip(row, present, strict=True))]
            for i, (row, present) in enumerate(zip(self[:_MOST].tolist(), self.present, strict=False))
        ]
        calibrated = any(there is not None for row in self.present for there in row)
        caption = "Zero-shot probability of each class, in brackets the calibrated probability of presence"
        if not calibrated:
            caption = "Zero-shot probability of each class; presence is not calibrated"
        more = (f"{len(self) - _MOST:,} more images are not shown.",) if len(self) > _MOST else ()
        return table_html(["image", *self.classes], rows, caption, [*self.warnings, *more])


def _cell(probability: float, present: float | None) -> str:
    return f"{probability:.2f}" if present is None else f"{probability:.2f} ({present:.2f})"


def prompt_set_of(prompts: Prompts) -> PromptSet:
    """The prompt set that a call names or gives; None is an empty one.

    >>> prompt_set_of({"edema": ["fluid"]}).prompts("edema")
    (['fluid'], ['no edema. '])
    >>> prompt_set_of("chest").name
    'chest'
    """
    if isinstance(prompts, str):
        return read_prompt_set(prompts)
    return prompts if isinstance(prompts, PromptSet) else PromptSet(classes=prompts or {})
