"""One image of a data set on its way to a record, and the account of what was left out.

Report text is patient data. Nothing here puts it into an error or a report: a row is named by its image file, a patient
by a pseudonym.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afloc_jax.errors import UsageError, UserError
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
        """Adds a region to the finding of this label, phrase (without case) and reader, which is new if it has none."""
        for finding in self.findings:
            if (finding.label, finding.prompt.lower(), finding.annotator) == (label, prompt.lower(), annotator):
                finding.regions.append(region)
                return
        self.findings.append(AnnotatedFinding(label, prompt, [region], annotator))


class BuildReport:
    """Counts records, rejected rows (broken files) and dropped rows (fine, but filtered out)."""

    def __init__(self, max_bad_fraction: float = 0.05):
        if not 0 <= max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {max_bad_fraction}, must lie between 0 and 1")
        self.max_bad_fraction = max_bad_fraction
        self.rows = 0
        self.records: Counter[str] = Counter()
        self.patients: dict[str, set[str]] = defaultdict(set)
        self.rejected: list[dict[str, str]] = []
        self.dropped: Counter[str] = Counter()

    def add(self, split: str, records: int, patients: Iterable[str]) -> None:
        """Counts records of a split and the pseudonyms of their patients."""
        self.records[split] += records
        self.patients[split].update(patients)

    def reject(self, image: str, reason: str) -> None:
        """Notes a broken image by its id. Raises UserError once more than the allowed share of rows is broken."""
        self.rejected.append({"image": image, "reason": reason})
        allowed = self.max_bad_fraction * self.rows
        if len(self.rejected) > allowed:
            shown = "; ".join(f"{entry['image']}: {entry['reason']}" for entry in self.rejected[:LISTED_IN_ERRORS])
            more = len(self.rejected) - LISTED_IN_ERRORS
            raise UserError(
                f"build stopped: {len(self.rejected)} of {self.rows} images are unusable, more than max_bad_fraction="
                f"{self.max_bad_fraction:g} allows ({shown}{f'; and {more} more' if more > 0 else ''}); mend or remove "
                "them, or raise max_bad_fraction"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the same input gives the same report."""
        return {
            "rows": self.rows,
            "records": {split: self.records[split] for split in SPLITS if self.records[split]},
            "patients": {split: len(self.patients[split]) for split in SPLITS if self.patients[split]},
            "dropped": dict(sorted(self.dropped.items())),
            "rejected": sorted(self.rejected, key=lambda entry: (entry["image"], entry["reason"])),
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def unique_ids(images: Iterable[str]) -> list[str]:
    """Record ids from image names: the name itself, with "#2", "#3", ... for an image that comes again."""
    seen: Counter[str] = Counter()
    ids = []
    for image in images:
        seen[image] += 1
        ids.append(image if seen[image] == 1 else f"{image}#{seen[image]}")
    return ids


def pseudonym(patient: str, seed: int = 0) -> str:
    """A stable name for a patient that does not show the original identifier."""
    return hashlib.sha256(f"{seed}:patient:{patient}".encode()).hexdigest()[:12] if patient else ""
