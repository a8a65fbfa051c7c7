"""The function of worker processes: records of phantoms. It imports little, so that processes start quickly."""

from collections.abc import Sequence

from data_pipelines.builders.phantom.drawing import SIZE
from data_pipelines.builders.phantom.findings import Kinds
from data_pipelines.builders.phantom.generate import Phantom, generate, kinds_of
from data_pipelines.images import encode_png
from data_pipelines.records import Finding, Record


def records(seed: int, named: float, varied: bool, phantoms: Sequence[tuple[str, int]]) -> list[Record]:
    """The records of phantoms, each a split and a number in it (see data_pipelines.records)."""
    kinds = kinds_of(varied)
    return [
        _record(generate(seed, split, number, named, varied), name_of(seed, split, varied, number), kinds)
        for split, number in phantoms
    ]


def name_of(seed: int, split: str, varied: bool, number: int) -> str:
    """The id of a phantom's record."""
    return f"phantom-{'varied-' if varied else ''}{seed}-{split}-{number}"


def _record(phantom: Phantom, name: str, kinds: Kinds) -> Record:
    findings = [Finding(f.label, f.prompt, encode_png(f.mask)) for f in phantom.findings]
    present = {finding.label for finding in phantom.findings}
    return Record(
        id=name,
        image=phantom.image,
        sentences=phantom.sentences,
        impression_count=phantom.impression_count,
        patient=name,
        view=phantom.view,
        height=SIZE,
        width=SIZE,
        findings=findings,
        labels={kind: int(kind in present) for kind in kinds},
    )
