"""The numbers of the overview, from one pass over the records."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from data_pipelines.overview.text_overlap import overlapping
from data_pipelines.reading import Records

LONG_REPORT = 20  # words; shorter reports often repeat a stock sentence, so that equal ones are no sign of a leak


@dataclass
class Overview:
    """The numbers that `measure` counts. The keys of mappings to integers are splits."""

    records: dict[str, int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    without_patient: dict[str, int] = field(default_factory=dict)
    with_text: dict[str, int] = field(default_factory=dict)
    views: Counter[str] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)  # words of each report that has text
    sentences: list[int] = field(default_factory=list)
    labels: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    findings: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # covered share of the square
    duplicates: int = 0  # images with the same pixels as another image
    duplicates_across: int = 0  # images with the same pixels as one in another split
    patients_across: int = 0  # patients with images in more than one split
    texts_across: dict[str, int] = field(default_factory=dict)  # long reports with a near-identical one elsewhere
    long_texts: dict[str, int] = field(default_factory=dict)

    @property
    def leaks(self) -> bool:
        """Whether a patient or an image is in two splits."""
        return bool(self.patients_across or self.duplicates_across)


def measure(sources: Mapping[str, Records]) -> Overview:
    """Measures counts, lengths, labels, findings, duplicates and leaks over all splits (name -> records)."""
    result = Overview()
    splits_of_patient: dict[str, set[str]] = defaultdict(set)
    copies: dict[bytes, list[str]] = defaultdict(list)
    texts: list[str] = []
    groups: list[str] = []
    for split, source in sources.items():
        patients = set()
        result.records[split] = len(source)
        result.without_patient[split] = result.with_text[split] = 0
        for row in tqdm(range(len(source)), f"overview of {split}", unit=" records", disable=None):
            record = source[row]
            copies[hashlib.sha256(record.image.tobytes()).digest()].append(split)
            result.views[record.view or "unknown"] += 1
            if record.patient:
                patients.add(record.patient)
                splits_of_patient[record.patient].add(split)
            else:
                result.without_patient[split] += 1
            words = sum(len(sentence.split()) for sentence in record.sentences)
            if record.sentences:
                result.with_text[split] += 1
                result.words.append(words)
                result.sentences.append(len(record.sentences))
            if words >= LONG_REPORT:
                texts.append(" ".join(record.sentences))
                groups.append(split)
            for name, value in record.labels.items():
                result.labels[name][value] += 1
            for finding in record.findings:
                result.findings[finding.label].append(float(finding.mask.mean()))
        result.patients[split] = len(patients)
    for where in copies.values():
        result.duplicates += len(where) if len(where) > 1 else 0
        result.duplicates_across += len(where) if len(set(where)) > 1 else 0
    result.patients_across = sum(len(splits) > 1 for splits in splits_of_patient.values())
    across = Counter(groups[k] for k in overlapping(texts, groups))
    result.texts_across = {split: across[split] for split in sources}
    result.long_texts = {split: groups.count(split) for split in sources}
    return result


@dataclass(frozen=True)
class Distribution:
    """A summary of values: their number, mean, and 5th, 50th and 95th percentile."""

    count: int
    mean: float
    low: float
    median: float
    high: float


def distribution(values: Sequence[float]) -> Distribution:
    """The summary of values; all zeros where there are none."""
    if not values:
        return Distribution(0, 0.0, 0.0, 0.0, 0.0)
    low, median, high = (float(value) for value in np.percentile(values, [5, 50, 95]))
    return Distribution(len(values), float(np.mean(values)), low, median, high)
