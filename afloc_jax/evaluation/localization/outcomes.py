"""Why the value of a sample is 0 or absent, or that its image does not show the finding."""

from enum import StrEnum


class Outcome(StrEnum):
    """The words of the column `note` of per_sample.csv."""

    SCORED = ""
    NO_TRUTH = "no truth in the scored region"
    EMPTY = "empty prediction"
    REJECTED = "confidence below the threshold"
    ONE_SIDED = "nothing inside or nothing outside"
    FALSE_POSITIVE = "false positive"
    TRUE_NEGATIVE = "true negative"


def joined(*parts: str) -> str:
    """A note of several parts; empty ones are left out."""
    return "; ".join(part for part in parts if part)


def outcomes_of(note: str) -> set[Outcome]:
    """The outcomes that a note names; what else it says, such as a threshold, is left out."""
    return {Outcome(part) for part in note.split("; ") if part in set(Outcome)}
