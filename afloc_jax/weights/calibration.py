"""calibration.json of a model folder: how the evidence for a prompt in an image becomes a probability of presence.

The evidence is a few numbers (`EVIDENCE`). A logistic regression over all classes makes them one logit,

    z = bias + sum of weight (evidence - mean) / deviation        with the evidence clipped to what the fit has seen,

and each class with enough records has a temperature T and a bias b of its own (Platt 1999; Guo et al. 2017,
arXiv:1706.04599): p = sigmoid(z / T + b). All other prompts have p = sigmoid(z), the pooled fit.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, bucket_path, read_json, write_json
from afloc_jax.seals import read_seal, renew_seal
from afloc_jax.settings import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, Rule, Settings, setting
from afloc_jax.weights.config import ModelFolderError

CALIBRATION = "calibration.json"
LARGEST_CALIBRATION = 1 << 21  # bytes
EVIDENCE = ("peak", "whole", "words")
PRESENT = 0.5  # a prompt of a lower probability is judged absent

_LabelSource = Literal["records", "table", "reports"]
_OF_EVIDENCE = Rule(lambda values: len(values) == len(EVIDENCE), f"{len(EVIDENCE)} numbers: {', '.join(EVIDENCE)}")
_POSITIVE_EACH = Rule(
    lambda values: len(values) == len(EVIDENCE) and min(values) > 0, f"{len(EVIDENCE)} numbers greater than 0"
)


@dataclass(frozen=True)
class ClassFit(Settings, section="class"):
    """A class of the calibration.

    Attributes:
        name: the name of the class, in lower case.
        words: what a prompt of this class says; see `class_of`.
        temperature, bias: of the class's own fit; None for the pooled one.
        positives, negatives: the records that were known to show and to lack the class.
    """

    name: str = setting("", NOT_EMPTY)
    words: tuple[str, ...] = ()
    temperature: float | None = setting(None, POSITIVE)
    bias: float | None = None
    positives: int = setting(0, NOT_NEGATIVE)
    negatives: int = setting(0, NOT_NEGATIVE)

    def check(self) -> None:
        """Raises UsageError if one of temperature and bias is missing."""
        if (self.temperature is None) != (self.bias is None):
            raise UsageError(f"{self.name_of('temperature')}: {self.name} has one of temperature and bias; give both")


@dataclass(frozen=True)
class Pooled(Settings, section="pooled"):
    """The fit over all classes: numbers in the order of `EVIDENCE`, and the bias.

    Attributes:
        mean, deviation: of the evidence in the fit.
        lowest, highest: its range; evidence beyond it counts as its end.
        weights, bias: of the logistic regression.
    """

    mean: tuple[float, ...] = setting((0.0,) * 3, _OF_EVIDENCE)
    deviation: tuple[float, ...] = setting((1.0,) * 3, _POSITIVE_EACH)
    lowest: tuple[float, ...] = setting((0.0,) * 3, _OF_EVIDENCE)
    highest: tuple[float, ...] = setting((1.0,) * 3, _OF_EVIDENCE)
    weights: tuple[float, ...] = setting((0.0,) * 3, _OF_EVIDENCE)
    bias: float = 0.0


@dataclass(frozen=True)
class Calibration(Settings, section="calibration"):
    """The content of calibration.json.

    Attributes:
        weights_sha256: the hash of the weights that were calibrated.
        dataset, split, records: the data of the fit, and the number of its records.
        labels: where labels come from: the "records", a "table", or by rule from "reports".
        pooled: the fit over all classes.
        classes: the classes of the fit.
    """

    format_version: Literal[1] = 1
    weights_sha256: str = ""
    dataset: str = ""
    split: str = ""
    records: int = setting(0, NOT_NEGATIVE)
    labels: _LabelSource = "records"
    pooled: Pooled = Pooled()
    classes: tuple[ClassFit, ...] = ()

    def logits(self, evidence: Float[np.ndarray, "P E"]) -> Float[np.ndarray, " P"]:
        """The logit z of the pooled fit, for P rows of evidence.

        >>> Calibration(pooled=Pooled(weights=(2.0, 0.0, 0.0), bias=-1.0)).logits(np.array([[0.5, 0.1, 0.7]]))
        array([0.])
        """
        fit = self.pooled
        seen = np.clip(np.asarray(evidence, np.float64), fit.lowest, fit.highest)
        return np.asarray((seen - fit.mean) / fit.deviation @ np.array(fit.weights) + fit.bias)

    def probability(self, logit: float, fit: ClassFit | None) -> float:
        """The probability of presence from a logit of the pooled fit, by the fit of a class if it has its own."""
        if fit is not None and fit.temperature is not None and fit.bias is not None:
            logit = logit / fit.temperature + fit.bias
        return float(sigmoid(np.array([logit]))[0])


def sigmoid(z: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 / (1 + exp(-z)), without overflow. (The import of SciPy's would take a tenth of a second.)"""
    return np.asarray(np.exp(-np.logaddexp(0.0, -z)))


def read_calibration(folder: AnyPath) -> Calibration | None:
    """The calibration of a model folder; None if it has none, or one of other weights.

    Raises:
        ModelFolderError: the file is damaged or has another format version.
    """
    place = Path(folder)
    path = place / CALIBRATION
    if not path.is_file():
        return None
    try:
        content = read_json(path, most=LARGEST_CALIBRATION)
        calibration = Calibration.read(content if isinstance(content, dict) else {"format_version": None})
    except UserError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ModelFolderError(f"{where}{error}; run afloc calibrate again") from None
    sealed = (read_seal(place) or {}).get("model.safetensors", calibration.weights_sha256)
    return calibration if sealed == calibration.weights_sha256 else None


def write_calibration(folder: AnyPath, calibration: Calibration) -> None:
    """Writes calibration.json into a model folder, and seals it. Raises OSError, UserError."""
    place = bucket_path(folder)
    write_json(place / CALIBRATION, calibration.plain())
    renew_seal(place, [CALIBRATION])


def own_fits(calibration: Calibration) -> list[ClassFit]:
    """The classes with a temperature and a bias of their own."""
    return [fit for fit in calibration.classes if fit.temperature is not None]


def without_class(calibration: Calibration, name: str) -> Calibration:
    """The calibration with the pooled fit for a class."""
    return dataclasses.replace(calibration, classes=tuple(fit for fit in calibration.classes if fit.name != name))
