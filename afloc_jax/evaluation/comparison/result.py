"""The result of a comparison: comparison.json, .csv and .md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from afloc_jax.evaluation.files import json_of, json_text, write_folder
from afloc_jax.evaluation.statistics.coverage import FEW, few_positives, remark_on_few
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.files import Path, csv_text
from afloc_jax.settings import Json

OVERALL = "all categories"


@dataclass(frozen=True)
class Row:
    """One row: a metric of A and of B, and A minus B with its test.

    `units` is the number of drawn units, of an AUC the number of those with a positive (0 for the mean over classes).
    Of a metric of 0 and 1, `only_a` and `only_b` count the samples in which one side alone has 1, `p_mcnemar` is that
    of McNemar's exact test, and `p_mcnemar_holm` is adjusted as `p_holm` is.
    """

    metric: str
    category: str
    n: int
    a: float
    b: float
    difference: float
    lower: float
    upper: float
    test: str
    p: float
    p_holm: float = float("nan")
    p_bh: float = float("nan")
    p_wilcoxon: float = float("nan")
    units: int = 0
    only_a: int | None = None
    only_b: int | None = None
    p_mcnemar: float = float("nan")
    p_mcnemar_holm: float = float("nan")


@dataclass(frozen=True)
class Difference:
    """The rows of one system (A) minus another (B)."""

    system: str
    against: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Unmatched:
    """The scores of one side without a partner: their number, and the first of them."""

    count: int
    examples: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Two results on the same samples.

    Attributes:
        a, b: the folders.
        matched: the number of scores that both have.
        unmatched: for "a" and "b", the scores that the other side does not have.
        notes: differences between the evaluations that affect the comparison.
        bootstrap: how intervals were computed, see `Bootstrap.to_dict`.
        permutations: the number of permutations of sign-flip tests.
        rows: for each metric the mean over categories and each category.
        provenance: for "a" and "b", the provenance of the result.
        images: the sentence on what the images are.
    """

    a: str
    b: str
    matched: int
    unmatched: Mapping[str, Unmatched]
    notes: Sequence[str]
    bootstrap: Mapping[str, Json]
    permutations: int
    rows: Sequence[Row]
    provenance: Mapping[str, Mapping[str, Json]]
    images: str

    def to_json(self) -> dict[str, Json]:
        """The content of comparison.json."""
        content: dict[str, Json] = json_of(self)
        return content

    def to_markdown(self) -> str:
        """The content of comparison.md: a table that is readable as plain text."""
        lines = [
            "# Comparison",
            "",
            f"A: `{self.a}`",
            f"B: `{self.b}`",
            "",
            self.images,
            "",
            f"{self.matched} scores are paired. Without a partner: {self.unmatched['a'].count} of A, "
            f"{self.unmatched['b'].count} of B.",
        ]
        for name, keys in self.unmatched.items():
            if keys.examples:
                lines.append(f"Only in {name.upper()}, for example: {'; '.join(keys.examples[:3])}.")
        lines += [f"Note: {note}" for note in self.notes]
        lines += [
            "",
            f"Difference A - B [95 % paired {self.bootstrap['interval']} interval, {self.bootstrap['resamples']} "
            f"resamples by {self.bootstrap['unit']}]. {about_tests(self.rows)}",
            "",
            *table_of(self.rows),
        ]
        remark = remark_on_rows(self.rows, self.bootstrap["unit"])
        return "\n".join([*lines, *(["", remark] if remark else [])]) + "\n"

    def write(self, out: Path, page: str) -> None:
        """Write comparison.csv, .json, .md and, from `page`, .html. Raises UserError when that fails."""
        columns = [field.name for field in fields(Row)]
        table = csv_text(columns, [list(asdict(row).values()) for row in self.rows])
        texts = {"csv": table, "md": self.to_markdown(), "json": json_text(self.to_json()), "html": page}
        write_folder(out, {f"comparison.{ending}": text for ending, text in texts.items()})


def about_tests(rows: Sequence[Row]) -> str:
    """What the columns of p of `table_of` are."""
    said = (
        "p: the test named; Holm and BH adjust the rows of categories together and the overall rows together. "
        "Wilcoxon's p is not adjusted."
    )
    if any(row.only_a is not None for row in rows):
        said += " McNemar's exact p has an adjustment by Holm of its own, for the same two groups of rows."
    return said


def table_of(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table of rows, with McNemar's test where a row has it."""
    counted = any(row.only_a is not None for row in rows)
    heads = ["metric", "category", "n", "A", "B", "A - B", "test", "p", "Holm", "BH", "Wilcoxon"]
    heads += ["only A", "only B", "McNemar", "McNemar, Holm"] if counted else []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row.metric, row.category.replace("|", "/"), f"{row.n}{'*' * (0 < row.units < FEW)}"]
        cells += [short(row.a), short(row.b)]
        cells += [str(Interval(row.difference, row.lower, row.upper)), row.test]
        cells += [short(p) for p in (row.p, row.p_holm, row.p_bh, row.p_wilcoxon)]
        if counted:
            cells += ["-" if count is None else str(count) for count in (row.only_a, row.only_b)]
            cells += [short(row.p_mcnemar), short(row.p_mcnemar_holm)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def remark_on_rows(rows: Sequence[Row], unit: Json) -> str:
    """What the intervals of rows of few units cover; empty if there are none."""
    fewest: dict[str, int] = {}
    for row in rows:
        fewest[row.category] = min(row.units or FEW, fewest.get(row.category, FEW))
    return remark_on_few(few_positives(fewest), unit)


def short(value: float) -> str:
    """A number of a table."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
