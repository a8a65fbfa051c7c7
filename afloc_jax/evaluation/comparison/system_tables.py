"""Reading of the per-sample tables of other systems: one CSV with a column `system`.

Its columns are system, id, image, patient, category, metric, threshold, value; or label and probability instead of
metric and value. Others wrote these tables, so every rule is checked, and an error names row and column but no cell.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from afloc_jax.errors import UserError
from afloc_jax.evaluation.comparison.sample_tables import Decision, Key, SampleTable
from afloc_jax.files import Path
from afloc_jax.tables import Row, read_table

NAMES = ("system", "id", "category")
MAY_LACK = ("image", "patient", "threshold")  # columns that a table need not have
KINDS = (("metric", "value"), ("label", "probability"))
KNOWN = (*NAMES, *MAY_LACK, *KINDS[0], *KINDS[1])
NO_CATEGORY = "no category"  # what rows without a category are called


class Line:
    """A row of the table, with errors that name its place."""

    def __init__(self, path: Path, row: Row) -> None:
        self._folder, self._row, self.number = path.parent, row, row.number

    def error(self, column: str, what: str) -> UserError:
        """The error of a cell."""
        return UserError(f"{self._folder / str(self._row.fault(column, what))}")

    def text(self, column: str) -> str:
        """The text of a cell; empty where the table lacks the column."""
        return self._row.get(column, "")

    def name(self, column: str) -> str:
        """The text of a cell that may not be empty."""
        if not self.text(column):
            raise self.error(column, "is empty")
        return self.text(column)

    def number_in(self, column: str) -> float:
        """The finite number of a cell."""
        text = self.text(column)
        try:
            value = float(text if text.isascii() and "_" not in text else "")  # Python reads 1_0, and digits of others
        except ValueError:
            raise self.error(column, "is not a number") from None
        if not math.isfinite(value):
            raise self.error(column, "is not a finite number")
        return value


@dataclass(frozen=True)
class TableFile:
    """The systems of a CSV file, in their order, and its columns that are not read."""

    systems: Sequence[SampleTable]
    unread: Sequence[str]


@dataclass
class _System:
    """The rows of a system so far: its scores or decisions, and the row that each key was in."""

    scores: dict[Key, float] = field(default_factory=dict)
    decisions: dict[Key, Decision] = field(default_factory=dict)
    rows: dict[Key, int] = field(default_factory=dict)


def read_systems(path: Path) -> TableFile:
    """The systems of a table. Raises UserError, in one line that names row and column, for what breaks a rule."""
    columns, lines = _lines(path)
    scored = {"metric", "value"} <= set(columns)
    systems: dict[str, _System] = {}
    patients: dict[str, str] = {}
    images: dict[str, str] = {}
    labels: dict[tuple[str, str], float] = {}
    for line in lines:
        system = systems.setdefault(line.name("system"), _System())
        identity, category = line.name("id"), line.text("category") or NO_CATEGORY
        threshold = line.number_in("threshold") if line.text("threshold") else None
        if scored:
            key = Key(identity, category, line.name("metric"), "" if threshold is None else repr(threshold + 0.0))
            system.scores[key] = line.number_in("value")
        else:
            key = Key(identity, category)
            system.decisions[key] = _decision(line, threshold)
            if labels.setdefault((identity, category), system.decisions[key].label) != system.decisions[key].label:
                raise line.error("label", "differs from another row of the same id and category")
        if system.rows.setdefault(key, line.number) != line.number:
            what = "system, id, category, metric and threshold" if scored else "system, id and category"
            raise line.error("id", f"the same {what} as in row {system.rows[key]}; keep one of the two")
        for column, known in (("patient", patients), ("image", images)):
            given = line.text(column)
            if given and known.setdefault(identity, given) != given:
                raise line.error(column, "differs from another row of the same id")
    if not systems:
        raise UserError(f"{path}, row 2: there is no sample below the header")
    ids = {key.id for system in systems.values() for key in system.rows}
    patient_of = {name: patients.get(name, "") for name in ids}
    image_of = {name: images.get(name, name) for name in ids}
    tables = [SampleTable(name, patient_of, image_of, one.scores, one.decisions) for name, one in systems.items()]
    return TableFile(tables, [name for name in columns if name not in {*NAMES, *MAY_LACK, *KINDS[not scored]}])


def _decision(line: Line, threshold: float | None) -> Decision:
    if line.text("label") not in ("0", "1", "0.0", "1.0"):
        raise line.error("label", "is neither 0 nor 1")
    probability = line.number_in("probability")
    predicted = float("nan") if threshold is None else float(probability >= threshold)
    return Decision(float(line.text("label")), probability, predicted)


def _lines(path: Path) -> tuple[Sequence[str], Iterator[Line]]:
    """The columns of a table, and its rows."""
    table = read_table(path, known=KNOWN, one_line=True)
    wanted = KINDS[not {"metric", "value"} & set(table.columns)]
    missing = [name for name in (*NAMES, *wanted) if name not in table.columns]
    if missing:
        raise UserError(
            f"{path}, row 1: no column {missing[0]}; a table of systems has the columns system, id, image, patient, "
            "category, metric, threshold, value, or label, probability instead of metric, value"
        )
    if set(KINDS[0] + KINDS[1]) <= set(table.columns):
        raise UserError(f"{path}, row 1: has metric, value and label, probability; make two tables of it")
    return table.columns, (Line(path, row) for row in table.whole())
