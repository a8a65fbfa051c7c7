"""Items: images of a data set with their annotations, from which records are made."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from afloc_jax.errors import UserError
from afloc_jax.tables import Fault
from data_pipelines.regions import Region

SPLITS = ("train", "validation", "test")
LISTED_IN_ERRORS = 3  # file names in an error; the build report has all of them


@dataclass
class AnnotatedFinding:
    """One annotated finding of one image. Its mask is the union of its regions."""

    label: str
    prompt: str
    regions: list[Region]
    annotator: str = ""


@dataclass
class Item:
    """One image of a data set with its annotations."""

    id: str
    image: Path
    patient: str = ""  # as the table has it; a pseudonym replaces it when all splits are assigned
    view: str = ""
    split: str = ""  # empty: assigned by the fractions
    sentences: list[str] = field(default_factory=list)
    impression_count: int = 0
    findings: list[AnnotatedFinding] = field(default_factory=list)
    study: str = ""  # likewise
    sections: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)  # 1 present, 0 absent, -1 uncertain; unknown ones are missing
    # Width and height of the image that the regions were drawn on, of which the file may be a resized copy; None where
    # nothing states them.
    annotated_size: tuple[int, int] | None = None
    slide: bool = False  # whether the image is a TIFF pyramid, of which one level is read
    fault: str = ""  # the reason of its rejection, if it is known before the image is decoded
    place: str = ""  # the table and row that name it, which errors show instead of its file

    def reject(self, fault: Fault | UserError | str) -> None:
        """Marks the item as unusable. The first fault stays."""
        self.fault = self.fault or str(fault)

    def add(self, label: str, prompt: str, region: Region, annotator: str = "") -> None:
        """Adds a region to the finding with this label, prompt (ignoring case) and annotator, created if missing."""
        for finding in self.findings:
            if (finding.label, finding.prompt.lower(), finding.annotator) == (label, prompt.lower(), annotator):
                finding.regions.append(region)
                return
        self.findings.append(AnnotatedFinding(label, prompt, [region], annotator))


def unique_ids(images: Iterable[str]) -> list[str]:
    """Record ids from image names: the name itself, with "#2", "#3", ... for repeated names."""
    seen: Counter[str] = Counter()
    ids = []
    for image in images:
        seen[image] += 1
        ids.append(image if seen[image] == 1 else f"{image}#{seen[image]}")
    return ids


def listed(names: Sequence[str], most: int = LISTED_IN_ERRORS) -> str:
    """The first `most` names, and the number of further ones."""
    more = len(names) - most
    return "; ".join(names[:most]) + (f"; and {more:,} more" if more > 0 else "")
