"""Lists of patients who must stay out of the records, such as those whose images a model will be evaluated on."""

from collections.abc import Iterable
from pathlib import Path

from afloc_jax.errors import UserError
from afloc_jax.files import user_path
from afloc_jax.settings import Json
from afloc_jax.tables import read_table, read_text

COLUMNS = ("patient", "patient_id", "subject_id", "PatientID", "Patient ID")  # of a table, the first that it has
_TABLES = (".csv", ".csv.gz")


def exclusion_lists(given: Json) -> list[Path]:
    """The files of the argument `exclude`, one path or a list of them. Raises UserError where one is not there."""
    names = given if isinstance(given, list) else [given] if given else []
    paths = [Path(user_path(str(name), "--exclude")) for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"--exclude {path}: no such file; it must list the patients to leave out")
    return paths


def read_patients(path: Path) -> frozenset[str]:
    """The patients in a file: one a line, or, in a CSV file, a column that `COLUMNS` names.

    A row without a patient stops the build, because the patient who should stand there would stay in training. No cell
    is shown.

    Raises UserError if the file cannot be read, or has no such column or no patient.
    """
    if path.name.lower().endswith(_TABLES):
        table = read_table(path, known=COLUMNS)
        column = next((name for name in COLUMNS if name in table.columns), None)
        if column is None:
            raise UserError(f"{path} has no column of patients; name one of its columns {', '.join(COLUMNS)}")
        rows = table.whole("; complete or remove the row")
        empty = next((row.number for row in rows if not row[column]), None)
        if empty is not None:
            raise UserError(f"{path}, row {empty}, column {column}: no patient; complete or remove the row")
        patients = [row[column] for row in rows]
    else:
        patients = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not patients:
        raise UserError(f"{path} names no patient")
    return frozenset(patients)


def patients_of(paths: Iterable[Path]) -> frozenset[str]:
    """The patients in any of the files."""
    return frozenset[str]().union(*(read_patients(path) for path in paths))
