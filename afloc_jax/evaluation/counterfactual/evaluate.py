"""Counterfactuals: how a model's answer moves if the prompt names the other side or zone, is negated, names a finding
that is not there, or is asked of another image.

A model that reads the prompt and looks at the image moves its similarity, its peak and its map, and to the right place.
Every annotated finding with its own prompt is a sample.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.evaluation.counterfactual.examples import choose, write_examples
from afloc_jax.evaluation.counterfactual.metrics import KINDS, METRICS, MOVES, SCORES
from afloc_jax.evaluation.counterfactual.moves import moves, right_place
from afloc_jax.evaluation.counterfactual.questions import Question, findings_by_class, questions_of
from afloc_jax.evaluation.counterfactual.result import Counterfactuals
from afloc_jax.evaluation.counterfactual.settings import CounterfactualSettings
from afloc_jax.evaluation.labelled import embed_records, read_labelled
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.samples import Part, read_truths
from afloc_jax.evaluation.results import PER_SAMPLE_COLUMNS, ByCategory, ScoreRow
from afloc_jax.evaluation.sharing import gathered, is_own
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Statistic, Units
from afloc_jax.evaluation.statistics.coverage import few_positives
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.evaluation.truth.sample import Drawing
from afloc_jax.files import AnyPath, Path
from afloc_jax.inference.class_prompts import find_class
from afloc_jax.inference.model import Model
from data_pipelines.reading import Records

KIND_INDEX = {kind.name: k for k, kind in enumerate(KINDS)}
MOVE_INDEX = {move.name: m for m, move in enumerate(MOVES)}


@dataclass(frozen=True)
class Table:
    """The measured values of n samples and K kinds; NaN where a kind does not apply.

    Attributes:
        moves: [n, K, 6] the `MOVES`.
        scores: [n, 1 + K, 2] the `SCORES` of the original pair of image and prompt, and of each counterfactual.
        contrasted: [n, K] whether there is a counterfactual that is not true of its image.
    """

    moves: Float[np.ndarray, "n K 6"]
    scores: Float[np.ndarray, "n K1 2"]
    contrasted: Bool[np.ndarray, "n K"]


@dataclass(frozen=True)
class Vectors:
    """The embeddings [D] of whole images by their row, and of whole prompts."""

    images: Mapping[int, Float[np.ndarray, " D"]]
    prompts: Mapping[str, Float[np.ndarray, " D"]]

    def cosines(self, rows: Sequence[int], prompts: Sequence[str]) -> Float[np.ndarray, " P"]:
        """The cosine of each pair; 0 for a zero vector."""
        a = np.stack([self.images[row] for row in rows])
        b = np.stack([self.prompts[prompt] for prompt in prompts])
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return np.asarray((a * b).sum(axis=1) / np.where(norms > 0, norms, 1))


def evaluate_dataset(models: Models, out: Path, settings: CounterfactualSettings) -> JsonObject:
    """`evaluate_counterfactuals` of the data set that the settings name. Raises UsageError, UserError."""
    source = settings.open(settings.split)
    return evaluate_counterfactuals(models.trained, source, out, settings).to_json()


def evaluate_counterfactuals(
    model: Model, source: Records, out: AnyPath, settings: CounterfactualSettings | None = None
) -> Counterfactuals:
    """Asks every counterfactual; writes per_sample.csv, summary.json, summary.md and examples to `out`.

    Raises UserError if there is no annotated finding (of the chosen classes), or none has a counterfactual.
    """
    settings = settings or CounterfactualSettings()
    part = read_truths(source, Drawing(settings.compatible))
    records = read_labelled(source, (), settings.labels, settings.unlisted)
    wanted = settings.classes
    chosen = [k for k, truth in enumerate(part.truths) if not wanted or find_class(truth.category, wanted) is not None]
    if not chosen:
        raise UserError(f"no finding of {', '.join(wanted)}; there are {', '.join(sorted(part.classes))}")
    questions = questions_of(part, records, chosen)
    if not questions.asked:
        raise UserError("no prompt has a counterfactual: none names a side or a zone, and none can be negated")
    truths = [part.truths[k] for k in chosen]
    bootstrap = settings.resampling
    units = bootstrap.units([truth.patient for truth in truths], [truth.image for truth in truths])
    table = measure(model, part, chosen, questions.asked, settings)
    names = sorted({truth.category for truth in truths})
    category = np.array([names.index(truth.category) for truth in truths])
    sha256 = hashlib.sha256(f"{part.sha256}\n{records.sha256}".encode()).hexdigest()
    kinds = {kind.name: [q for q in questions.asked if q.kind == kind.name] for kind in KINDS}
    result = Counterfactuals(
        settings.account(model, source, sha256, units),
        few_positives=few_positives({name: units.number(category == c) for c, name in enumerate(names)}),
        n=len(chosen),
        n_per_category={name: int((category == c).sum()) for c, name in enumerate(names)},
        asked={kind: _by_class(asked, part, names) for kind, asked in kinds.items()},
        true={kind: sum(question.true for question in asked) for kind, asked in kinds.items()},
        not_applicable=questions.not_applicable,
        metrics=summarised(table, category, names, bootstrap, units),
    )
    result.write(out, PER_SAMPLE_COLUMNS, _rows(part, chosen, table))
    position = {k: i for i, k in enumerate(chosen)}
    moved = [_moved(table.moves[position[question.sample]], question) for question in questions.asked]
    write_examples(out, model, part, choose(questions.asked, np.array(moved)), settings.compatible)
    return result


def _moved(values: Float[np.ndarray, "K M"], question: Question) -> float:
    """1 if the map of a counterfactual moved as it should, 0 if not: to the right place, or from where it was."""
    right, stays = (values[KIND_INDEX[question.kind], MOVE_INDEX[name]] for name in ("right_place", "stays"))
    return float(1 - stays if question.kind == "other_image" else right)


def _by_class(asked: Sequence[Question], part: Part, names: Sequence[str]) -> dict[str, int]:
    categories = [part.truths[question.sample].category for question in asked]
    return {name: categories.count(name) for name in names}


# Measuring


def measure(
    model: Model, part: Part, chosen: Sequence[int], asked: Sequence[Question], settings: CounterfactualSettings
) -> Table:
    """The values of the chosen samples. Maps are computed batch by batch, each with its counterfactuals."""
    used = sorted({int(part.rows[k]) for k in chosen} | {question.row for question in asked})
    embedded = embed_records(model, part.source, np.array(used), settings.framed)
    # All prompts at once: in whatever batches a process computes its maps, the vectors are the same to the last bit,
    # unless the model knows some of them from an earlier task, whose batches were others.
    prompts = sorted({part.truths[k].label_text for k in chosen} | {question.prompt for question in asked})
    of_prompts = model.embed_prompts(prompts, compatible=settings.compatible)
    vectors = Vectors(dict(zip(used, embedded, strict=True)), dict(zip(prompts, of_prompts, strict=True)))
    of_sample: dict[int, list[Question]] = {k: [] for k in chosen}
    for question in asked:
        of_sample[question.sample].append(question)
    tables: list[Table | None] = []
    starts = range(0, len(chosen), model.batch_size)
    for number, start in enumerate(tqdm(starts, desc="counterfactuals", unit="batch", disable=None)):
        samples = chosen[start : start + model.batch_size]
        own = is_own(number)
        tables.append(_measured(model, part, samples, of_sample, vectors, settings.compatible) if own else None)
    found = gathered(tables)
    return Table(
        np.concatenate([one.moves for one in found]),
        np.concatenate([one.scores for one in found]),
        np.concatenate([one.contrasted for one in found]),
    )


def _measured(
    model: Model,
    part: Part,
    samples: Sequence[int],
    of_sample: Mapping[int, Sequence[Question]],
    vectors: Vectors,
    compatible: bool,
) -> Table:
    """The values of one batch."""
    pairs = [(int(part.rows[k]), part.truths[k].label_text) for k in samples]
    pairs += [(question.row, question.prompt) for k in samples for question in of_sample[k]]
    rows, prompts = [row for row, _ in pairs], [prompt for _, prompt in pairs]
    used = sorted(set(rows))
    squares = np.stack([part.source[row].image for row in used])
    maps = model.heatmaps_of_pairs(squares, np.searchsorted(used, rows), prompts, compatible=compatible)
    cosines = vectors.cosines(rows, prompts)
    region = ProtocolOptions(compatible=compatible).scored_region
    shape = len(samples), len(KINDS)
    table = Table(
        np.full((*shape, len(MOVES)), np.nan), np.full((shape[0], 1 + shape[1], 2), np.nan), np.zeros(shape, bool)
    )
    same, next_pair = findings_by_class(part), len(samples)
    for i, k in enumerate(samples):
        truth, before = part.truths[k], region(maps[i])
        table.scores[i, 0] = cosines[i], before.max()
        masks = [part.truths[other].mask for other in same[int(part.rows[k]), truth.category]]
        for question in of_sample[k]:
            kind, after = KIND_INDEX[question.kind], region(maps[next_pair])
            right = right_place(question, masks)
            moved = moves(
                before, after, region(truth.mask > 0), None if right is None else region(right), question.true
            )
            drop = np.nan if question.true else cosines[i] - cosines[next_pair]
            table.moves[i, kind] = drop, *moved
            table.scores[i, 1 + kind] = cosines[next_pair], after.max()
            table.contrasted[i, kind] = not question.true
            next_pair += 1
    return table


# Numbers with intervals


def summarised(
    table: Table, category: Int[np.ndarray, " n"], names: Sequence[str], bootstrap: Bootstrap, units: Units
) -> dict[str, ByCategory]:
    """The metrics, by "<kind> <metric>", each by class and as a mean over classes. Kinds without a sample are left out.

    The prompt and its counterfactual belong to one sample, so they are drawn together.
    """
    n, width = len(category), len(MOVES)
    means = bootstrap.means(table.moves.reshape(n, -1), category, len(names), units.clusters)
    areas = bootstrap.resample(aucs(table, category, len(names)), n, units.clusters)
    metrics: dict[str, ByCategory] = {}
    for k, kind in enumerate(KINDS):
        for m, metric in enumerate(METRICS):
            of_auc = m >= width
            found = areas[k * len(SCORES) + m - width] if of_auc else means[k * width + m]
            if np.isfinite(found.point).any():
                metrics[f"{kind.name} {metric.name}"] = ByCategory.mean_of(found, names, bootstrap, of_auc)
    return metrics


def aucs(table: Table, category: Int[np.ndarray, " n"], categories: int) -> Statistic:
    """The statistic [C, K * 2] of the AUC of each class, kind and score: original pairs are the positives."""

    def auc_of(c: int, k: int, score: int, weights: Weights) -> np.ndarray:
        members = np.flatnonzero((category == c) & table.contrasted[:, k])
        if not len(members):
            return np.full(len(weights.sum(axis=1)), np.nan)
        scores = np.concatenate([table.scores[members, 0, score], table.scores[members, 1 + k, score]])
        twice = np.concatenate([members, members])
        return discrimination.auc(np.arange(len(twice)) < len(members), scores, weights[:, twice])

    def statistic(weights: Weights) -> np.ndarray:
        columns = [(k, score) for k in range(len(KINDS)) for score in range(len(SCORES))]
        classes = [np.stack([auc_of(c, *of, weights) for of in columns], axis=-1) for c in range(categories)]
        return np.stack(classes, axis=1)

    return statistic


def _rows(part: Part, chosen: Sequence[int], table: Table) -> Iterator[ScoreRow]:
    """The rows of per_sample.csv: moves, and the scores of the original ("present") and of each counterfactual."""
    for i, k in enumerate(chosen):
        truth = part.truths[k]
        values = {f"present {score}": table.scores[i, 0, s] for s, score in enumerate(SCORES)}
        for index, kind in enumerate(KINDS):
            values |= {f"{kind.name} {score}": table.scores[i, 1 + index, s] for s, score in enumerate(SCORES)}
            values |= {f"{kind.name} {move.name}": table.moves[i, index, m] for m, move in enumerate(MOVES)}
        for metric, value in values.items():
            if np.isfinite(value):
                yield truth.id, truth.patient, truth.category, metric, "", float(value), ""
