"""Failures of a sample, such as an IoU below 0.1: a metric of 0 and 1 that is made of another."""

import operator
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from afloc_jax.errors import UsageError

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Failure:
    """A sample fails where its `metric`, averaged over thresholds, is below or above a `limit`.

    >>> print(Failure.parse("iou < 0.1"))
    iou<0.1
    """

    metric: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.limit:g}"

    @classmethod
    def parse(cls, text: str) -> "Failure":
        """The failure of a text such as "iou<0.1". Raises UsageError for another form."""
        parts = re.fullmatch(r"([^<>=]*[^<>=\s])\s*(<=|>=|<|>)\s*([-+.\w]+)\s*", text)
        try:
            limit = float(parts[3]) if parts else float("nan")
        except ValueError:
            limit = float("nan")
        if parts is None or not np.isfinite(limit):
            raise UsageError(f"a failure is a metric, one of < <= > >= and a number, such as 'iou<0.1'; got {text!r}")
        return cls(parts[1].strip(), parts[2], limit)

    def holds(self, values: Float[np.ndarray, "S n"]) -> Float[np.ndarray, "S n"]:
        """Which samples of each system fail, as 1 and 0."""
        return np.asarray(OPERATORS[self.sign](values, self.limit), np.float64)
