"""Comparison of several systems by their per-sample tables: means, and paired differences from one of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.comparison import paired
from afloc_jax.evaluation.comparison.compare import corrected, difference_rows
from afloc_jax.evaluation.comparison.failure import Failure
from afloc_jax.evaluation.comparison.means import Mean, means_of
from afloc_jax.evaluation.comparison.page import comparison_page
from afloc_jax.evaluation.comparison.result import Difference, Row, about_tests, remark_on_rows, table_of
from afloc_jax.evaluation.comparison.sample_tables import Key, SampleTable, images_in, read_samples
from afloc_jax.evaluation.comparison.system_tables import read_systems
from afloc_jax.evaluation.comparison.values import Values, values_of
from afloc_jax.evaluation.files import json_of, json_text, write_folder
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.statistics.coverage import FEW
from afloc_jax.files import AnyPath, Path, csv_text, sha256_of
from afloc_jax.settings import Json


@dataclass(frozen=True)
class Systems:
    """Several systems on the same samples.

    Attributes:
        systems: their names.
        against: the system from which the differences of the others are taken.
        matched: the number of scores that all systems have.
        unmatched: for each system, its scores that another one lacks; they count nowhere.
        notes: what affects the comparison.
        bootstrap: how intervals were computed, see `Bootstrap.to_dict`.
        permutations: the number of permutations of sign-flip tests.
        sha256: the hash of each table.
        means: the means of every system.
        differences: the rows of every other system minus `against`.
        images: the sentence on what the images are.
    """

    systems: Sequence[str]
    against: str
    matched: int
    unmatched: Mapping[str, int]
    notes: Sequence[str]
    bootstrap: Mapping[str, Json]
    permutations: int
    sha256: Mapping[str, str]
    means: Sequence[Mean]
    differences: Sequence[Difference]
    images: str

    def to_markdown(self) -> str:
        """The content of comparison.md: tables that are readable as plain text."""
        unit = self.bootstrap["unit"]
        lines = ["# Comparison of systems", "", self.images, ""]
        lines.append(f"{self.matched} scores are shared by all {len(self.systems)} systems.")
        lines += [f"Note: {note}" for note in self.notes]
        lines += [
            "",
            f"Means [95 % bootstrap interval, {self.bootstrap['resamples']} resamples by {unit}].",
            "",
            f"| metric | category | n | {' | '.join(map(_cell, self.systems))} |",
            f"|{'---|' * (3 + len(self.systems))}",
        ]
        for start in range(0, len(self.means), len(self.systems)):
            row = self.means[start : start + len(self.systems)]
            number = f"{row[0].n}{'*' * (0 < row[0].units < FEW)}"
            cells = [row[0].metric, _cell(row[0].category), number, *(str(mean.interval) for mean in row)]
            lines.append(f"| {' | '.join(cells)} |")
        rows = [row for one in self.differences for row in one.rows]
        lines += ["", f"Differences [95 % paired interval]. {about_tests(rows)} Rows of all pairs count together."]
        for one in self.differences:
            lines += ["", f"A: {one.system}, B: {one.against}. A - B:", "", *table_of(one.rows)]
        remark = remark_on_rows(rows, unit)
        return "\n".join([*lines, *(["", remark] if remark else [])]) + "\n"

    def write(self, out: Path) -> None:
        """Writes comparison.csv, means.csv, comparison.json, .md and .html. Raises UserError when that fails."""
        rows = [[one.system, one.against, *asdict(row).values()] for one in self.differences for row in one.rows]
        differences = csv_text(["system", "against", *(field.name for field in fields(Row))], rows)
        means = csv_text([field.name for field in fields(Mean)], [list(asdict(mean).values()) for mean in self.means])
        page = comparison_page(self.systems, self.means, self.differences, self.notes, self.bootstrap, self.images)
        texts = {
            "comparison.csv": differences,
            "means.csv": means,
            "comparison.json": json_text(json_of(self)),
            "comparison.md": self.to_markdown(),
            "comparison.html": page,
        }
        write_folder(out, texts)


def compare_systems(
    sources: Sequence[AnyPath],
    out: str | os.PathLike[str] | None = None,
    bootstrap: Bootstrap | None = None,
    against: str = "",
    failures: Sequence[Failure] = (),
) -> Systems:
    """Compares the systems of tables (`system_tables`), and of result folders, each of which is one system.

    Only the samples that all systems have are compared. Each other system minus `against`, or where empty the first
    one, has the rows of `compare`; Holm and Benjamini-Hochberg adjust the rows of all pairs together. Raises UserError
    for unusable tables, other labels, other kinds of scores, and systems that share no sample.
    """
    bootstrap = bootstrap or Bootstrap()
    paths = [Path(source) for source in sources]
    tables, notes = _read(paths)
    names = [table.name for table in tables]
    if against and against not in names:
        raise UsageError(f"--against {against}: none of the {len(names)} systems has that name")
    common = _common(tables)
    unmatched = {table.name: len(table.keys) - len(common) for table in tables}
    for name, count in unmatched.items():
        if count:
            notes.append(f"{count} scores of {name} are left out, because another system lacks them.")
    values = values_of(tables, common, bootstrap, failures)
    notes += _notes(tables, values)
    reference = names.index(against) if against else 0
    others = [index for index in range(len(names)) if index != reference]
    pairs = [difference_rows(values, index, reference) for index in others]
    adjusted = iter(corrected([row for rows in pairs for row in rows]))
    result = Systems(
        names,
        names[reference],
        len(common),
        unmatched,
        notes,
        bootstrap.to_dict(values.units),
        paired.PERMUTATIONS,
        {str(path): sha256_of(path) for path in paths if is_table(path)},
        means_of(values, names),
        [
            Difference(names[index], names[reference], [next(adjusted) for _ in rows])
            for index, rows in zip(others, pairs, strict=True)
        ],
        images_in(tables),
    )
    if out is not None:
        result.write(Path(out))
    return result


def is_table(path: Path) -> bool:
    """Whether a source is a table of systems, and not a result folder."""
    return bool(path.suffix.lower() == ".csv" or path.is_file())


def _read(paths: Sequence[Path]) -> tuple[list[SampleTable], list[str]]:
    """Two or more systems of the sources, and notes on columns that are not read."""
    tables: list[SampleTable] = []
    notes: list[str] = []
    for path in paths:
        if is_table(path):
            file = read_systems(path)
            tables += file.systems
            if file.unread:
                notes.append(f"{path.name} has {len(file.unread)} columns that are not read.")
        else:
            alike = [other for other in paths if other.name == path.name]
            tables.append(replace(read_samples(path), name=path.name if len(alike) == 1 else str(path)))
    if len(tables) < 2:
        kind = UserError if is_table(paths[0]) else UsageError
        raise kind(f"{paths[0]}: holds one system; compare two or more")
    if len({table.name for table in tables}) < len(tables):
        raise UserError("two of the sources hold a system of the same name; name each system once")
    return tables, notes


def _common(tables: Sequence[SampleTable]) -> list[Key]:
    """The keys that all tables have. Errors state numbers alone, because tables of others may hold report text."""
    if len({bool(table.scores) for table in tables}) > 1:
        raise UserError("some systems have values of metrics and others probabilities; compare systems of one kind")
    shared = set(tables[0].keys).intersection(*(table.keys for table in tables[1:]))
    if not shared:
        counts = ", ".join(str(len(table.keys)) for table in tables)
        raise UserError(
            f"0 scores are shared by all {len(tables)} systems, which have {counts}; ids, categories, metrics and "
            "thresholds must be the same"
        )
    common = [key for key in tables[0].keys if key in shared]
    for table in tables[1:]:
        differing = sum(
            abs(table.decisions[key].label - tables[0].decisions[key].label) > 0 for key in common if table.decisions
        )
        if differing:
            raise UserError(
                f"labels differ between systems for {differing} of {len(common)} samples: not the same data"
            )
    return common


def _notes(tables: Sequence[SampleTable], values: Values) -> list[str]:
    notes = []
    if not any(name for table in tables for name in table.patients.values()):
        notes.append(f"No patient is named, so that intervals and tests draw {values.units.name}s.")
    if values.ranked is not None:
        present = {scored.metric for scored in values.scored}
        if "accuracy" not in present:
            notes.append("Without thresholds there is no accuracy.")
        if "brier" not in present:
            notes.append("Some probabilities lie outside 0 and 1, so that there is no Brier score.")
    return notes


def _cell(text: str) -> str:
    return text.replace("|", "/")
