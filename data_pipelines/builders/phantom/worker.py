"""What a worker process does: phantoms to records. Imports little, so that processes start quickly."""

from collections.abc import Iterable

from data_pipelines.builders.phantom.drawing import SIZE
from data_pipelines.builders.phantom.findings import KINDS
from data_pipelines.builders.phantom.generate import Phantom, generate
from data_pipelines.images import encode_png
from data_pipelines.records import EncodedRecord, Finding, make_record


def records(seed: int, split: str, numbers: Iterable[int]) -> list[EncodedRecord]:
    """The records of these phantoms of a split, as data_pipelines.records describes them."""
    return [_record(generate(seed, split, number), f"{seed}-{split}-{number}") for number in numbers]


def _record(phantom: Phantom, name: str) -> EncodedRecord:
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
