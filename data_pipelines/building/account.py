"""The account of a build: how many records it made, and what it left out and why.

Report text is patient data, and none of it gets here: an image is named by its file, a patient by a pseudonym.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json, plain
from data_pipelines.building.items import SPLITS, listed

REPORT = "build_report.json"


@dataclass(frozen=True, order=True)
class Rejected:
    """An image that could not be used."""

    image: str
    reason: str


@dataclass(frozen=True)
class BuildReport:
    """What a finished build counted.

    Attributes:
        rows: images that the tables of the raw folder name; None: the records were drawn, and nothing was left out.
        records: number of records in each split.
        patients: number of patients in each split, where they are known.
        dropped: reason -> number of images that were left out on purpose.
        rejected: images that could not be used.
    """

    rows: int | None
    records: dict[str, int]
    patients: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "BuildReport":
        """The report beside the records of a prepared folder."""
        stored = {"rows": None, **read_json(folder / REPORT, "remove the folder and prepare again")}
        rejected = tuple(Rejected(**entry) for entry in stored.pop("rejected", ()))
        return cls(**stored, rejected=rejected)

    def plain(self) -> dict[str, Json]:
        """The content of build_report.json. The same input gives the same report."""
        return plain(asdict(self) if self.rows is not None else {"records": self.records})


class Account:
    """Counts records, rejected images (broken files) and dropped ones (fine, but filtered out) while a build runs."""

    def __init__(self, max_bad_fraction: float = 0.05):
        if not 0 <= max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {max_bad_fraction}, must lie between 0 and 1")
        self.max_bad_fraction = max_bad_fraction
        self.rows = 0
        self.records: Counter[str] = Counter()
        self.patients: dict[str, set[str]] = defaultdict(set)
        self.rejected: list[Rejected] = []
        self.dropped: Counter[str] = Counter()

    def add(self, split: str, records: int, patients: Iterable[str]) -> None:
        """Counts records of a split and the pseudonyms of their patients."""
        self.records[split] += records
        self.patients[split].update(patients)

    def reject(self, image: str, reason: str) -> None:
        """Notes a broken image by its id. Raises UserError once more than the allowed share of rows is broken."""
        self.rejected.append(Rejected(image, reason))
        if len(self.rejected) > self.max_bad_fraction * self.rows:
            shown = listed([f"{entry.image}: {entry.reason}" for entry in self.rejected])
            raise UserError(
                f"build stopped: {len(self.rejected)} of {self.rows} images are unusable, more than max_bad_fraction="
                f"{self.max_bad_fraction:g} allows ({shown}); mend or remove them, "
                " or raise max_bad_fraction"
            )

    def report(self) -> BuildReport:
        """What has been counted, in an order that does not depend on the order of the work."""
        return BuildReport(
            rows=self.rows,
            records={split: self.records[split] for split in SPLITS if self.records[split]},
            patients={split: len(self.patients[split]) for split in SPLITS if self.patients[split]},
            dropped=dict(sorted(self.dropped.items())),
            rejected=tuple(sorted(self.rejected)),
        )
