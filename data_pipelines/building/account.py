"""The account of a build: how many records it made, and which images it left out and why.

It contains no report text, which is patient data. Images are named by their files, patients by pseudonyms. It stays on
this machine; errors and logs name rows of tables instead.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json, plain
from data_pipelines.building.items import SPLITS, listed

REPORT = "build_report.json"


@dataclass(frozen=True, order=True)
class Rejected:
    """An image that cannot be used."""

    image: str
    reason: str
    place: str = ""  # the table and row that name it


class TooManyRejectedError(UserError):
    """More images are unusable than the build may leave out. The message names places in tables, `rejected` files."""

    def __init__(self, message: str, rejected: Sequence[Rejected]):
        super().__init__(message)
        self.rejected = rejected


@dataclass(frozen=True)
class BuildReport:
    """The report of a finished build.

    Attributes:
        rows: the number of images in the tables of the raw folder; None if the records were drawn.
        records: the number of records in each split.
        patients: the number of patients in each split, where they are known.
        dropped: reason -> number of images that were filtered out.
        rejected: images that cannot be used.
        boxes_outside: id of an image -> number of its boxes that reach beyond it and were cut. A box that lies wholly
            outside rejects its image.
        flat: ids of images whose pixels all have the same grey value. They are among the records.
        black: those of them that are black in the records, as constant images deeper than 8 bits are.
        notes: sentences for the user, e.g. about patients who were looked for in vain.
    """

    rows: int | None
    records: dict[str, int]
    patients: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    boxes_outside: dict[str, int] = field(default_factory=dict)
    flat: tuple[str, ...] = ()
    black: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "BuildReport":
        """The report of a prepared folder. Raises UserError for a damaged file."""
        remedy = "remove the folder and prepare again"
        content = read_json(folder / REPORT, remedy)
        try:
            stored = {"rows": None, **content}
            rejected = tuple(Rejected(**entry) for entry in stored.pop("rejected", ()))
            stored |= {name: tuple(stored.get(name, ())) for name in ("flat", "black", "notes")}
            return cls(**stored, rejected=rejected)
        except TypeError:
            raise UserError(f"{folder / REPORT}: is not what a build writes; {remedy}") from None

    def plain(self) -> dict[str, Json]:
        """The content of build_report.json. The same input gives the same report."""
        return plain(asdict(self) if self.rows is not None else {"records": self.records})


class Account:
    """Counts records, rejected images (unusable files) and dropped images (filtered out) while a build runs."""

    def __init__(self, max_bad_fraction: float = 0.05):
        if not 0 <= max_bad_fraction <= 1:
            raise UsageError(f"max_bad_fraction is {max_bad_fraction}, must lie between 0 and 1")
        self.max_bad_fraction = max_bad_fraction
        self.rows = 0
        self.records: Counter[str] = Counter()
        self.patients: dict[str, set[str]] = defaultdict(set)
        self.rejected: list[Rejected] = []
        self._shown: list[str] = []
        self.dropped: Counter[str] = Counter()
        self.boxes_outside: dict[str, int] = {}
        self.flat: set[str] = set()
        self.black: set[str] = set()
        self.notes: list[str] = []

    def add(self, split: str, records: int, patients: Iterable[str]) -> None:
        """Adds records of a split, with the pseudonyms of their patients."""
        self.records[split] += records
        self.patients[split].update(patients)

    def reject(self, image: str, reason: str, shown: str, place: str) -> None:
        """Adds an unusable image or row, with its place in a table. `shown` is what an error says: no file name.

        Raises TooManyRejectedError once the share of unusable images exceeds `max_bad_fraction`.
        """
        self.rejected.append(Rejected(image, reason, place))
        self._shown.append(shown)
        if len(self.rejected) > self.max_bad_fraction * self.rows:
            raise TooManyRejectedError(
                f"build stopped: {len(self.rejected)} of {self.rows} images are unusable, more than max_bad_fraction="
                f"{self.max_bad_fraction:g} allows ({listed(self._shown)}); repair or remove them,"
                " or raise max_bad_fraction",
                tuple(sorted(self.rejected)),
            )

    def report(self) -> BuildReport:
        """The report, in an order that does not depend on the order of the work."""
        return BuildReport(
            rows=self.rows,
            records={split: self.records[split] for split in SPLITS if self.records[split]},
            patients={split: len(self.patients[split]) for split in SPLITS if self.patients[split]},
            dropped=dict(sorted(self.dropped.items())),
            rejected=tuple(sorted(self.rejected)),
            boxes_outside=dict(sorted(self.boxes_outside.items())),
            flat=tuple(sorted(self.flat)),
            black=tuple(sorted(self.black)),
            notes=tuple(self.notes),
        )
