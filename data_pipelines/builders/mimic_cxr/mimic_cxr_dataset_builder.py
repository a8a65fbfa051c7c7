"""MIMIC-CXR and MIMIC-CXR-JPG: radiographs with reports. See docs/datasets/mimic_cxr.md."""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from afloc_jax.errors import UserError
from afloc_jax.files import read_regular
from afloc_jax.tables import Row
from data_pipelines.builders.cxr_lt.cxr_lt_dataset_builder import TEST_TABLES
from data_pipelines.builders.mimic_cxr.sections import report_sections
from data_pipelines.builders.ms_cxr.annotations import annotated_patients
from data_pipelines.building.arguments import texts
from data_pipelines.building.exclusion import patients_of
from data_pipelines.building.expected_files import Files, one_file
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.building.splits import split_of
from data_pipelines.building.tables import labels_of
from data_pipelines.images import ImageError

CLASSES = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
_REPORTS = "mimic-cxr-reports.zip"
_REPORT_COUNT = 227835
_LARGEST_REPORT = 1 << 24  # bytes; the longest one of MIMIC-CXR has a few thousand
_IMAGE_ROWS, _LABEL_ROWS = 377110, 227827  # eight reports have no labels
_KEYS = ("dicom_id", "subject_id", "study_id")
_LABEL_COLUMNS = ("subject_id", "study_id", *CLASSES)
_FORMATS = {"jpg": ".jpg", "dicom": ".dcm"}


class Builder(PublishedBuilder):
    """Pairs of an image and a report.

    Args:
        views: values of ViewPosition to keep; empty for all.
        labeler: the source of labels, "chexpert" or "negbio".
        images: "jpg" (MIMIC-CXR-JPG) or "dicom" (MIMIC-CXR).
        exclude_ms_cxr: whether to leave out all patients with an image in MS-CXR, whose file must then be below the raw
            folder.
        exclude_cxr_lt: whether to leave out all patients in the test tables of CXR-LT that lie below the raw folder.
            Without a table the build report says that none was left out.
    """

    FILES = (
        Files("mimic-cxr-2.0.0-metadata.csv*", "a row per image", columns=(*_KEYS, "ViewPosition"), rows=_IMAGE_ROWS),
        Files("mimic-cxr-2.0.0-split.csv*", "official splits", columns=(*_KEYS, "split"), rows=_IMAGE_ROWS),
        # Only the labels of the chosen labeler are needed.
        Files("mimic-cxr-2.0.0-chexpert.csv*", "CheXpert's labels", None, _LABEL_COLUMNS, True, _LABEL_ROWS),
        Files("mimic-cxr-2.0.0-negbio.csv*", "NegBio's labels", None, _LABEL_COLUMNS, True, _LABEL_ROWS),
        Files(_REPORTS, "reports", optional=True),  # they may be unpacked
    )

    def __init__(
        self,
        *,
        views: Iterable[str] = ("AP", "PA"),
        labeler: Literal["chexpert", "negbio"] = "chexpert",
        images: Literal["jpg", "dicom"] = "jpg",
        exclude_ms_cxr: bool = True,
        exclude_cxr_lt: bool = True,
        **kwargs,
    ):
        self.views, self.labeler, self.images = frozenset(texts("views", views)), labeler, images
        self.exclude_ms_cxr, self.exclude_cxr_lt = bool(exclude_ms_cxr), bool(exclude_cxr_lt)
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """Images of the wanted views in the order of the metadata."""
        files = {name: f"mimic-cxr-2.0.0-{name}.csv*" for name in ("metadata", "split", self.labeler)}
        tables = {
            name: self.read_table(
                one_file(self.raw, pattern),
                ("study_id",),
                "a table of MIMIC-CXR-JPG",
                unique=("study_id",) if name == self.labeler else ("dicom_id",),
                names=_KEYS,
            )
            for name, pattern in files.items()
        }
        splits = {row["dicom_id"]: row for row in tables["split"]}
        labels = {row["study_id"]: row for row in tables[self.labeler]}
        of_ms_cxr = annotated_patients(self.raw) if self.exclude_ms_cxr else frozenset()
        of_cxr_lt = self._patients_of_cxr_lt() if self.exclude_cxr_lt else frozenset()
        read_report = self._report_reader()
        study, parts = "", None  # images of a study are consecutive, so its report is parsed once
        for row in tables["metadata"]:
            if self.views and row["ViewPosition"] not in self.views:
                self.drop("view not wanted")
            elif row["subject_id"] in of_ms_cxr:
                self.drop("patient of MS-CXR")
            elif row["subject_id"] in of_cxr_lt:
                self.drop("patient of CXR-LT")
            else:
                if row["study_id"] != study:
                    study, text = row["study_id"], read_report(f"{self._folder(row)}.txt")
                    parts = None if text is None else report_sections(text)
                item = self._item(row, splits, labels, parts)
                if item is not None:
                    yield item

    def _item(
        self, row: Row, splits: dict[str, Row], labels: dict[str, Row], parts: dict[str, str] | None
    ) -> Item | None:
        if parts is None:
            self.lack(f"{self._folder(row)}.txt", "no report")
            return None
        image = self.raw / self._folder(row) / (row["dicom_id"] + _FORMATS[self.images])
        item = Item(row["dicom_id"], image, row["subject_id"], row["ViewPosition"], place=row.place)
        item.study, item.sections = row["study_id"], parts
        try:
            item.split = split_of(splits[row["dicom_id"]])
            item.labels = labels_of(labels[row["study_id"]], CLASSES) if row["study_id"] in labels else {}
        except KeyError:
            item.reject(row.fault("dicom_id", "not in the table of splits"))
        except ImageError as error:
            item.reject(error)
        findings = parts.get("findings", "")
        if not (findings or parts.get("impression")):
            findings = parts.get("last_paragraph", "")
        self.set_report(item, findings, parts.get("impression", ""))
        if not item.sentences:
            self.drop("report without a sentence")
            return None
        return item

    def _patients_of_cxr_lt(self) -> frozenset[str]:
        tables = sorted(self.raw.glob(TEST_TABLES))
        if not tables:
            self.account.notes.append(
                f"no {TEST_TABLES.removeprefix('**/')} of CXR-LT below the raw folder: its patients are among the "
                "records; put the tables there, or do not evaluate on CXR-LT"
            )
        return patients_of(tables)

    @staticmethod
    def _folder(row: Row) -> str:
        patient = row["subject_id"]
        return f"files/p{patient[:2]}/p{patient}/s{row['study_id']}"

    def _report_reader(self) -> Callable[[str], str | None]:
        """A function from path to report text (None if there is none), from the archive or the unpacked folder."""
        if (self.raw / _REPORTS).is_file():
            try:
                archive = zipfile.ZipFile(self.raw / _REPORTS)
            except (zipfile.BadZipFile, OSError):
                raise UserError(f"{self.raw / _REPORTS} is not a readable archive; fetch it again") from None
            names = {name for name in archive.namelist() if name.endswith(".txt")}
            self.check_count(_REPORTS, len(names), _REPORT_COUNT, "reports")

            def unpack(name: str) -> str | None:
                try:
                    if name not in names:
                        return None
                    if archive.getinfo(name).file_size > _LARGEST_REPORT:  # zipfile unpacks no more than that
                        raise UserError(
                            f"{self.raw / _REPORTS}: a report of it has more than {_LARGEST_REPORT:,} bytes"
                        )
                    return archive.read(name).decode("utf-8", "replace")
                except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
                    raise UserError(f"{self.raw / _REPORTS} is damaged at one of its reports; fetch it again") from None

            return unpack
        roots = [folder for folder in (self.raw / "mimic-cxr-reports", self.raw) if next(_texts(folder), None)]
        if not roots:
            raise UserError(f"no reports in {self.raw}: put {_REPORTS} of MIMIC-CXR there, or its folder files/")
        self.check_count("files/p*/p*/s*.txt", sum(1 for _ in _texts(roots[0])), _REPORT_COUNT, "reports")

        def read(name: str) -> str | None:
            path = roots[0] / name
            return read_regular(path, _LARGEST_REPORT).decode("utf-8", "replace") if path.is_file() else None

        return read


def _texts(folder: Path) -> Iterator[Path]:
    return folder.glob("files/p*/p*/s*.txt")
