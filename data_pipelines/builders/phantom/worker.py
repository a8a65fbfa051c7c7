"""What a worker process does: phantoms to records. Imports little, so that processes start quickly."""

import cv2

from data_pipelines.builders.phantom.drawing import SIZE
from data_pipelines.builders.phantom.findings import KINDS
from data_pipelines.builders.phantom.generate import Phantom, generate
from data_pipelines.images import encode_png
from data_pipelines.records import EncodedRecord, Finding, make_record


def initialize() -> None:
    """Run once in each worker: one process per CPU leaves no room for OpenCV's own threads."""
    cv2.setNumThreads(1)


def records(seed: int, split: str, start: int, stop: int) -> list[EncodedRecord]:
    """The records of phantoms start..stop-1 of a split, as data_pipelines.records describes them."""
    return [as_record(generate(seed, split, index), f"{seed}-{split}-{index}") for index in range(start, stop)]


def as_record(phantom: Phantom, name: str) -> EncodedRecord:
    findings = [Finding(f.label, f.prompt, encode_png(f.mask)) for f in phantom.findings]
    present = {finding.label for finding in phantom.findings}
    return make_record(
        f"phantom-{name}",
        phantom.image,
        SIZE,
        SIZE,
        patient=f"phantom-{name}",
        view=phantom.view,
        sentences=phantom.sentences,
        impression_count=phantom.impression_count,
        labels={kind: int(kind in present) for kind in KINDS},
        findings=findings,
    )
