"""Lists of patients who must stay out of the records, such as those whose images a model will be evaluated on."""

from collections.abc import Iterable
from pathlib import Path

from afloc_jax.errors import UserError
from afloc_jax.files import user_path
from afloc_jax.settings import Json
from data_pipelines.building.tables import read_table

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
        rows = read_table(path, (), "patients to leave out")
        column = next((name for name in COLUMNS if name in rows[0]), None)
        if column is None:
            raise UserError(f"{path} has no column of patients; name one of its columns {', '.join(COLUMNS)}")
        patients = [row[column] for row in rows]
        empty = next((number for number, patient in enumerate(patients, start=2) if not patient), None)
        if empty is not None:
            raise UserError(f"{path}, row {empty}, column {column}: no patient; complete or remove the row")
    else:
        try:
            patients = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as text in UTF-8") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if not patients:
        raise UserError(f"{path} names no patient")
    return frozenset(patients)


def patients_of(paths: Iterable[Path]) -> frozenset[str]:
    """The patients in any of the files."""
    return frozenset[str]().union(*(read_patients(path) for path in paths))
