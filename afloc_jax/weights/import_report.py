"""The report of an import, for its user and for the model card."""

from collections.abc import Sequence
from dataclasses import dataclass

from afloc_jax.files import Path, sha256_of
from afloc_jax.settings import Json
from afloc_jax.weights.sources import TOWERS, Source

_SHALLOW = "img_encoder.local2_embedder.weight"


@dataclass(frozen=True)
class ImportReport:
    """The report of an import.

    Attributes:
        folder: the model folder that was written.
        imported: "file: kind" for each source.
        backbone: the name of the image encoder's backbone.
        missing: published names of the parameters that no source holds; their values are random.
        left_out: names of tensors in the sources that the model does not use.
        notes: notes for the user: assumptions, and limits of the model.
    """

    folder: Path
    imported: tuple[str, ...]
    backbone: str
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        told = [f"{self.folder}: {self.backbone} and BERT from {'; '.join(self.imported)}"]
        if self.missing:
            told.append(f"not trained (random by the seed): {summary(self.missing)}")
        if self.left_out:
            told.append(f"left out: {summary(self.left_out)}")
        return told + list(self.notes)


def apart(missing: Sequence[str]) -> bool:
    """Whether image and text of a model in which these parameters are random have not been trained together."""
    absent = {tower for tower in TOWERS if sum(name.startswith(tower) for name in missing) > 2}
    return bool(absent) or "img_encoder.local_embedder.weight" in missing


def consequences(missing: Sequence[str]) -> list[str]:
    """Notes on the limits of a model in which these parameters are random."""
    told = []
    if apart(missing):
        told.append("must be trained before use: image and text have not been trained together")
    elif _SHALLOW in missing:
        told.append(
            "not trained: shallow level. Heat maps come from the deep map and are not affected; similarities of words "
            "mean nothing"
        )
    return told


def card(found: Sequence[Source], report: ImportReport) -> dict[str, Json]:
    """The facts about the weights for the model card."""
    data: dict[str, Json] = {
        f"imported from {source.title}": f"{source.kind}, SHA-256 {sha256_of(source.file)}" for source in found
    }
    if report.missing:
        data["not trained, random by the seed"] = summary(report.missing)
    if report.left_out:
        data["left out"] = summary(report.left_out)
    if report.notes:
        data["to know"] = "; ".join(report.notes)
    return {"data": data, "apart": True} if apart(report.missing) else {"data": data}


def summary(names: Sequence[str], shown: int = 12) -> str:
    """The names in one line. More than `shown` names are counted by tower instead."""
    if len(names) <= shown:
        return ", ".join(names)
    groups: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        group = ".".join(parts[:2] if name.startswith(("img_encoder.", "text_encoder.")) else parts[:1])
        groups[group] = groups.get(group, 0) + 1
    return ", ".join(f"{group}.* ({count})" for group, count in groups.items())
