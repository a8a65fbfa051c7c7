"""One image of a data set on its way to a record."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.regions import Region

SPLITS = ("train", "validation", "test")
LISTED_IN_ERRORS = 3  # file names shown in an error; the build report has them all


@dataclass
class AnnotatedFinding:
    """One annotated finding of one image; its regions are united."""

    label: str
    prompt: str
    regions: list[Region]
    annotator: str = ""


@dataclass
class Item:
    """One image of a data set with all that is known of it."""

    id: str
    image: Path
    patient: str = ""  # as in the table; never written anywhere
    view: str = ""
    split: str = ""  # empty: decided by the fractions
    sentences: list[str] = field(default_factory=list)
    impression_count: int = 0
    findings: list[AnnotatedFinding] = field(default_factory=list)
    study: str = ""  # as in the table; never written anywhere
    sections: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)  # 1 present, 0 absent, -1 uncertain; not listed: unknown
    slide: bool = False  # a TIFF pyramid, of which one level is read
    fault: str = ""  # why it is rejected, if that is known before its image is decoded

    def add(self, label: str, prompt: str, region: Region, annotator: str = "") -> None:
        """Adds a region to the finding with this label, prompt (in any case) and annotator, made if missing."""
        for finding in self.findings:
            if (finding.label, finding.prompt.lower(), finding.annotator) == (label, prompt.lower(), annotator):
                finding.regions.append(region)
                return
        self.findings.append(AnnotatedFinding(label, prompt, [region], annotator))


def unique_ids(images: Iterable[str]) -> list[str]:
    """Record ids from image names: the name itself, with "#2", "#3", ... for an image that comes again."""
    seen: Counter[str] = Counter()
    ids = []
    for image in images:
        seen[image] += 1
        ids.append(image if seen[image] == 1 else f"{image}#{seen[image]}")
    return ids


def listed(names: Sequence[str], most: int = LISTED_IN_ERRORS) -> str:
    """The first names and how many more there are."""
    more = len(names) - most
    return "; ".join(names[:most]) + (f"; and {more:,} more" if more > 0 else "")


def pseudonym(patient: str, seed: int = 0) -> str:
    """A stable name for a patient that does not show the original identifier."""
    return hashlib.sha256(f"{seed}:patient:{patient}".encode()).hexdigest()[:12] if patient else ""
