"""The function of worker processes: records of phantoms. It imports little, so that processes start quickly."""

from collections.abc import Iterable

from data_pipelines.builders.phantom.drawing import SIZE
from data_pipelines.builders.phantom.findings import Kinds
from data_pipelines.builders.phantom.generate import Phantom, generate, kinds_of
from data_pipelines.images import encode_png
from data_pipelines.records import Encoded, Finding, Record


def records(seed: int, split: str, named: float, varied: bool, numbers: Iterable[int]) -> list[Encoded]:
    """The records of the phantoms `numbers` of a split (see data_pipelines.records)."""
    kinds, before = kinds_of(varied), f"{'varied-' if varied else ''}{seed}-{split}"
    return [_record(generate(seed, split, number, named, varied), f"{before}-{number}", kinds) for number in numbers]


def _record(phantom: Phantom, name: str, kinds: Kinds) -> Encoded:
    findings = [Finding(f.label, f.prompt, encode_png(f.mask)) for f in phantom.findings]
    present = {finding.label for finding in phantom.findings}
    return Record(
        id=f"phantom-{name}",
        image=phantom.image,
        sentences=phantom.sentences,
        impression_count=phantom.impression_count,
        patient=f"phantom-{name}",
        view=phantom.view,
        height=SIZE,
        width=SIZE,
        findings=findings,
        labels={kind: int(kind in present) for kind in kinds},
    ).encoded()
