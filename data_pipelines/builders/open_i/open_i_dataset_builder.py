"""Open-i: chest radiographs of Indiana University with their reports. See docs/datasets/open_i.md."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from afloc_jax.errors import UserError
from afloc_jax.files import read_regular
from data_pipelines.building.expected_files import Files, index_files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder

_PROJECTIONS = "indiana_projections.csv"
_LARGEST_REPORT = 1 << 24  # bytes of an XML file; real ones have a few thousand


class Builder(PublishedBuilder):
    """Every image of every report.

    Args:
        frontal: keep frontal images only. It needs the table indiana_projections.csv (columns uid, filename,
            projection) in the raw folder, because the reports do not state views.
    """

    FILES = (
        Files("**/[0-9]*.xml", "reports, NLMCXR_reports.tgz", count=3955),
        Files("**/CXR*.png", "images, NLMCXR_png.tgz", count=7470),
    )
    FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}  # noqa: RUF012

    def __init__(self, *, frontal: bool = False, **kwargs):
        self.frontal = bool(frontal)
        super().__init__(**kwargs)

    def cases(self) -> Iterator[Item]:
        """One item per image, reports in the order of their numbers."""
        images = index_files(self.raw, [".png"])
        views = self._views()
        reports = [path for path in self.raw.rglob("*.xml") if path.stem.isdigit()]
        for path in sorted(reports, key=lambda path: int(path.stem)):
            try:
                report = ElementTree.fromstring(read_regular(path, _LARGEST_REPORT))
            except (ElementTree.ParseError, OSError):
                yield Item(path.name, path, fault="not a readable XML report")
                continue
            parts = {node.get("Label", "").lower(): (node.text or "").strip() for node in report.iter("AbstractText")}
            labels = {(node.text or "").split("/")[0].strip().lower(): 1 for node in report.iter("major")}
            for image in report.iter("parentImage"):
                name = image.get("id", "")
                view = views.get(name, "")
                if self.frontal and view.lower() != "frontal":
                    self.drop("not frontal")
                    continue
                # Patients are not published, so each report counts as a patient.
                item = Item(name, images.get(f"{name}.png", path.parent / f"{name}.png"), f"CXR{path.stem}", view)
                item.study = item.patient
                item.sections = {name: text for name, text in parts.items() if text}
                item.labels = {label: value for label, value in labels.items() if label}
                self.set_report(item, parts.get("findings", ""), parts.get("impression", ""))
                if item.sentences:
                    yield item
                else:
                    self.drop("report without a sentence")

    def _views(self) -> dict[str, str]:
        table = self.raw / _PROJECTIONS
        if not table.is_file():
            if self.frontal:
                raise UserError(f"frontal=true needs {_PROJECTIONS} in {self.raw}: reports do not say which images are")
            return {}
        # In that table CXR1_1_IM-0001-3001.png is named 1_IM-0001-3001.dcm.png, and CXR10_IM-0002-1001.png is named
        # 10_IM-0002-1001.dcm.png.
        views = {}
        for row in self.read_table(table, ("uid", "filename", "projection"), "a row per image"):
            name = re.sub(r"[.].*$", "", row["filename"])
            views[f"CXR{name}"] = views[f"CXR{row['uid']}_{name}"] = row["projection"]
        return views
