"""The labelled training, validation and test records of a transfer, and the subsets to learn from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.labelled import LabelledRecords, read_labelled
from afloc_jax.evaluation.transfer.settings import CHEXPERT_UNCERTAIN, TransferSettings
from afloc_jax.evaluation.transfer.subsets import Subset, check_classes, draw
from afloc_jax.inference.class_prompts import find_class
from data_pipelines.reading import Records

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class Splits:
    """Records and labels by `TRAIN`, `VALIDATION` and `TEST`, all with the same classes.

    Attributes:
        sources: the records.
        labelled: the labels of those that have any.
        subsets: the shares of the training records, each with a positive and a negative of every class; of masks, each
            with a mask of every class.
        left_out: classes that a split shows in all records, or in none, and that were not asked for by name; of masks,
            those of which a split has none.
    """

    sources: Mapping[str, Records]
    labelled: Mapping[str, LabelledRecords]
    subsets: list[Subset]
    left_out: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labelled[TEST].classes


def open_splits(settings: TransferSettings) -> Splits:
    """`read_splits` of the data set that the settings name.

    Raises:
        UsageError: two of the splits are the same.
        UserError: a split is missing, or its labels are unusable.
    """
    names = {TRAIN: settings.train_split, VALIDATION: settings.validation_split, TEST: settings.split}
    if len({*names.values()}) < len(names):
        raise UsageError(f"splits {', '.join(names.values())}: training, validation and test must differ")
    return read_splits({part: settings.open(name) for part, name in names.items()}, settings)


def read_splits(sources: Mapping[str, Records], settings: TransferSettings) -> Splits:
    """The labels of all splits. Without `settings.classes`: of the classes that can be learned and scored.

    If masks are learned, a record that shows a class without a mask of it has an unknown label, and negatives are not
    needed: their cells are outside of masks, as most are of positives. Raises UserError where labels are missing, or a
    subset lacks a positive or a negative of a class.
    """
    masks = settings.target == "masks"
    labelled = {part: _labelled(source, (), settings) for part, source in sources.items()}
    occurring = labelled[TRAIN].classes
    if settings.classes:
        labelled = {part: _labelled(source, settings.classes, settings) for part, source in sources.items()}
        kept = list(labelled[TRAIN].classes)
    else:
        kept = [name for name in occurring if all(_is_learnable(one, name, masks) for one in labelled.values())]
        if not kept and masks:
            raise UserError(
                f"no class has a mask in each of {', '.join(sources)}; choose other splits, or a data set with masks"
            )
        if not kept:
            raise UserError(
                f"no class has a positive and a negative in each of {', '.join(sources)}: a data set whose labels list "
                "only what is present needs unlisted=absent; else give labels, a CSV file"
            )
        labelled = {part: _labelled(source, kept, settings) for part, source in sources.items()}
    for part, one in labelled.items():
        for name in kept:
            if not _is_learnable(one, name, masks):
                lacking = "mask" if masks else "positive or no negative"
                raise UserError(f"the {part} records hold no {lacking} of {name!r}; leave the class out")
    train = labelled[TRAIN]
    subsets = draw(train.patients, train.ids, settings.fractions, settings.subset_seed)
    for subset in subsets:
        check_classes(subset, train.labels[subset.rows], train.classes, masks)
    left_out = [] if settings.classes else [name for name in occurring if name not in kept]
    return Splits(sources, labelled, subsets, left_out)


def _labelled(source: Records, classes: tuple[str, ...] | list[str], settings: TransferSettings) -> LabelledRecords:
    records = read_labelled(source, classes, settings.labels, settings.unlisted)
    labels = records.labels.copy()
    for c, name in enumerate(records.classes if settings.uncertain == "chexpert" else ()):
        known = find_class(name, list(CHEXPERT_UNCERTAIN))
        if known is not None:
            labels[records.doubtful[:, c], c] = CHEXPERT_UNCERTAIN[known]
    if settings.target == "masks":
        for i, row in enumerate(records.rows.tolist()):
            drawn = [find_class(finding.label, records.classes) for finding in source[row].findings]
            lacking = ~np.isin(records.classes, [name for name in drawn if name is not None])
            labels[i, lacking & (labels[i] == 1)] = np.nan
    return replace(records, labels=labels)


def _is_learnable(records: LabelledRecords, name: str, masks: bool) -> bool:
    """Whether some record is known to show a class, and some to lack it; of masks, whether some record has one."""
    known = find_class(name, list(records.classes))
    if known is None:
        return False
    labels = records.labels[:, records.classes.index(known)]
    return bool(np.any(labels == 1) and (masks or np.any(labels == 0)))
