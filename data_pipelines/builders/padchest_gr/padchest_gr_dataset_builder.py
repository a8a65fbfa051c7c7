"""PadChest-GR: sentences of reports with boxes on images of PadChest. See docs/datasets/padchest_gr.md."""

from collections.abc import Iterator
from typing import Any, Literal

from afloc_jax.errors import UserError
from afloc_jax.files import read_json
from data_pipelines.building.expected_files import Files, index_files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.splits import split_of
from data_pipelines.images import ImageError
from data_pipelines.regions import RelativeBox

_REPORTS, MASTER_TABLE = "grounded_reports_*.json", "master_table.csv"


class Builder(PublishedBuilder):
    """One record per study, and one finding per sentence that has boxes.

    Args:
        language: the language of the sentences, "en" or "es".
    """

    FILES = (
        Files(_REPORTS, "sentences and boxes", 1, rows=4555),
        Files(MASTER_TABLE, "official splits", 1, ("StudyID", "PatientID", "split")),
        Files("**/*.png", "images, PadChest_GR"),
    )
    FRACTIONS = {"train": 1.0}  # noqa: RUF012

    def __init__(self, *, language: Literal["en", "es"] = "en", **kwargs):
        self.language = language
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """Studies in the order of the file of reports."""
        images = index_files(self.raw, [".png"])
        table = self.read_table(self.raw / MASTER_TABLE, ("StudyID", "PatientID", "split"), "rows of studies")
        about = {row["StudyID"]: row for row in table}
        path = one_file(self.raw, _REPORTS)
        entries = read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path}: must be a list of entries; fetch it again")
        for number, entry in enumerate(entries):
            where = f"{path.name}, entry {number}"
            try:
                name, study = str(entry["ImageID"]), entry["StudyID"]
                row = about[study]
            except (KeyError, TypeError):
                yield Item(where, path, fault=f"{where}: not an image of a study in {MASTER_TABLE}", place=where)
                continue
            item = Item(name, images.get(name, self.raw / "PadChest_GR" / name), row["PatientID"], place=where)
            item.study = study
            try:
                item.split = split_of(row)
                self._add_sentences(item, entry["findings"])
            except ImageError as error:
                item.reject(error)
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
                item.reject(f"{where}, findings: not sentences with boxes of four numbers")
            yield item

    def _add_sentences(self, item: Item, findings: list[dict[str, Any]]) -> None:
        sentences = [str(finding[f"sentence_{self.language}"]).strip().rstrip(".") for finding in findings]
        self.set_report(item, ". ".join(sentences))
        for sentence, finding in zip(sentences, findings, strict=True):
            labels = [str(label).strip().lower() for label in finding.get("labels") or []]
            item.labels.update(dict.fromkeys(labels, 1) if finding.get("abnormal") else {})
            for box in finding.get("boxes") or []:  # normal sentences have none
                left, top, right, bottom = (float(value) for value in box)
                item.add(labels[0] if labels else "finding", sentence, RelativeBox(left, top, right, bottom))
