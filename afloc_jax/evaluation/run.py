"""Score a model on a data set, beside two baselines on the same samples, and leave everything the report needs.

The baselines say what a score is worth: the mean training mask of the category (knows where findings usually are,
never looks at the image), and the same network without training (what smoothing and architecture give for free).
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.baselines import leave_one_out_prior, location_prior, prior_heatmaps
from afloc_jax.evaluation.localization import ProtocolOptions, Scores, score
from afloc_jax.evaluation.results import PROTOCOLS, write_results
from afloc_jax.evaluation.statistics import RESAMPLES
from afloc_jax.evaluation.summary import add_baselines, summarise
from afloc_jax.evaluation.truth import Truth
from afloc_jax.inference.model import Model, load
from afloc_jax.provenance import hash_of, provenance
from afloc_jax.weights.folder import update_card, weights_hash
from data_pipelines.sources import open_source


class Source(Protocol):
    """Random access to records with `id`, `image` [S, S] uint8 and `findings` (label, prompt, mask)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def evaluate(
    model: Model,
    source: Source,
    out: str | Path,
    protocol: str = "afloc",
    *,
    prior_source: Source | None = None,
    untrained: Model | None = None,
    compatible: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    title: str = "",
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Heat maps for every finding of a data set, scored; per_sample.csv, summary.json, summary.md, examples.npz.

    Args:
        model: what is scored.
        source: random-access records with `id`, `image` [S, S] uint8 and `findings` (label, prompt, mask).
        out: folder of the results.
        protocol: "afloc".
        prior_source: records whose masks make the location prior (the training split). Without it, or when it has no
            masks, each sample meets the mean mask of the other evaluation images.
        untrained: the second baseline; `model.untrained()` when not given.
        compatible: prompts and scores as the published release has them, defects included.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        title: name of the data set for readers.
        settings: how the data set was opened; recorded.

    Returns:
        What summary.json holds.

    Raises:
        UsageError: an unknown protocol. UserError: no annotated finding, or maps that are not finite.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}; this program knows {', '.join(PROTOCOLS)}")
    truths, rows, data_hash = read_truths(source)
    options = ProtocolOptions(compatible=compatible)

    def scored(system: Model, name: str) -> Scores:
        maps = _heatmaps(system, source, rows, truths, compatible)
        return score(truths, tqdm(maps, total=len(truths), desc=name, unit="map", disable=None), options)

    scores = scored(model, title or "model")
    prior_maps, prior_from = _prior(truths, prior_source)
    baselines = {
        "location_prior": score(truths, prior_maps, options),
        "untrained": scored(untrained or model.untrained(), "untrained model"),
    }
    summary = add_baselines(summarise(scores, resamples, seed), scores, baselines, resamples, seed)
    summary["baselines"]["location_prior"]["from"] = prior_from
    summary["title"] = title
    summary["settings"] = settings or {}
    summary["provenance"] = provenance(
        weights_sha256=model.weights_sha256,
        data_sha256=data_hash,
        records=getattr(source, "content_hash", ""),
        config_sha256=hash_of(model.config.architecture.to_dict()),
    )
    _write_examples(Path(out), model, source, rows, scores, compatible)
    write_results(out, scores, summary)
    return summary


def evaluate_dataset(model: str | Path, out: str | Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`evaluate` for a model folder and a data set by name; `settings` as in `evaluate_datasets`.

    Raises:
        UsageError: an unknown setting or protocol. UserError: an unusable folder or data set.
    """
    full = dataset_settings(settings)
    source = _open(full, full["split"])
    return _evaluate_with(load(model), None, source, Path(out), full)


def evaluate_datasets(config: ConfigDict, workdir: str | Path) -> dict[str, dict[str, Any]]:
    """Evaluate `workdir/model` on every entry of `config.evaluation.datasets`; what training does last.

    An entry has `name` (the builder), `directory`, and optionally `raw`, `builder` (its keyword arguments), `split`
    ("test"), `protocol` ("afloc"), `compatible` (False), `prior_split` ("train", the part whose masks make the location
    prior; "" for none) and `title`, which also names the folder under `evaluation/`. Results that were made with these
    weights and settings are kept. The model card is given the results.

    Returns:
        Folder name -> summary.
    """
    workdir = Path(workdir)
    if not config.evaluation.datasets:
        return {}
    weights = weights_hash(workdir / "model")
    model: Model | None = None
    untrained: Model | None = None
    summaries: dict[str, dict[str, Any]] = {}
    for entry in config.evaluation.datasets:
        given = entry.to_dict() if isinstance(entry, ConfigDict) else dict(entry)
        settings = dataset_settings({"bootstrap": config.evaluation.bootstrap, **given})
        name = _folder_name(settings, taken=summaries)
        out = workdir / "evaluation" / name
        done = _finished(out, weights, settings)
        if done is None:
            model = model or load(workdir / "model")
            untrained = untrained or model.untrained()
            done = _evaluate_with(model, untrained, _open(settings, settings["split"]), out, settings)
        summaries[name] = done
    results = {name: {"n": summary["n"], "metrics": summary["metrics"]} for name, summary in summaries.items()}
    update_card(workdir / "model", {"results": results})
    return summaries


def read_truths(source: Source) -> tuple[list[Truth], np.ndarray, str]:
    """One sample per finding of every record.

    Returns:
        The truths, the row in `source` of each, and the SHA-256 over ids, images, prompts and masks.

    Raises:
        UserError: no record has a finding.
    """
    truths: list[Truth] = []
    rows: list[int] = []
    digest = hashlib.sha256()
    for row in range(len(source)):
        record = source[row]
        for k, finding in enumerate(record.findings):
            mask = (np.asarray(finding.mask) > 0).astype(np.uint8)
            truths.append(Truth(f"{record.id}#{k}", finding.prompt, finding.label, mask, image=record.id))
            rows.append(row)
            digest.update(f"{record.id}\t{finding.label}\t{finding.prompt}\t".encode())
            digest.update(np.packbits(mask).tobytes())
        digest.update(np.ascontiguousarray(record.image).tobytes() if record.findings else b"")
    if not truths:
        raise UserError("this data set has no annotated finding, so there is nothing to score; choose another split")
    return truths, np.array(rows), digest.hexdigest()


def _heatmaps(
    model: Model, source: Source, rows: np.ndarray, truths: Sequence[Truth], compatible: bool
) -> Iterator[np.ndarray]:
    """The map of every sample in order; each image is read and encoded once (its samples are neighbours)."""
    images = np.unique(rows)
    for chosen in _batches(images.tolist(), model.batch_size):
        samples = np.flatnonzero((rows >= chosen[0]) & (rows <= chosen[-1]))
        squares = np.stack([source[row].image for row in chosen])
        position = np.searchsorted(chosen, rows[samples])
        prompts = [truths[int(i)].label_text for i in samples]
        yield from model.heatmaps_of_pairs(squares, position, prompts, compatible=compatible)


def _batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _prior(truths: Sequence[Truth], prior_source: Source | None) -> tuple[Iterable[np.ndarray], str]:
    """Maps of the location prior, and in words what it was made from."""
    places: dict[str, list[tuple[int, int]]] = {}
    prior_source = [] if prior_source is None else prior_source
    for row in range(len(prior_source)):
        for k, finding in enumerate(prior_source[row].findings):
            places.setdefault(finding.label, []).append((row, k))
    if not places:
        return leave_one_out_prior(truths), "mean mask of the category in the other evaluation images"
    shape = truths[0].mask.shape

    def masks(category: str) -> Iterator[np.ndarray]:  # decoded one at a time: training sets are large
        for row, k in places[category]:
            mask = np.asarray(prior_source[row].findings[k].mask)
            if mask.shape != shape:
                raise UserError(f"training masks are {mask.shape}, evaluation masks {shape}; prepare both at one size")
            yield mask

    priors = location_prior({category: masks(category) for category in places})
    count = sum(len(group) for group in places.values())
    return prior_heatmaps(priors, truths), f"mean mask of the category in {count:,} training masks"


# Examples for the report


def _write_examples(
    out: Path, model: Model, source: Source, rows: np.ndarray, scores: Scores, compatible: bool
) -> None:
    """The best, median and worst sample of each category: examples.npz (arrays) and examples.json (what they are)."""
    chosen = choose_examples(scores)
    overlap = scores.iou.mean(axis=1)
    images, maps, truths, described = [], [], [], []
    for i, rank in chosen:
        truth = scores.truths[i]
        image = source[int(rows[i])].image
        images.append(image)
        truths.append(truth.mask > 0)
        maps.append(model.heatmaps_of_squares(image[None], [truth.label_text], compatible=compatible)[0])
        described.append(
            {
                "id": truth.id,
                "category": truth.category,
                "prompt": truth.label_text,
                "rank": rank,
                "iou": _number(overlap[i]),
                "cnr": _number(scores.cnr[i]),
                "hit": bool(scores.pointing[i] >= 0.5),
                "peak": _peak(maps[-1], scores.options),
            }
        )
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / ".examples.npz.writing"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, images=np.stack(images), heatmaps=np.stack(maps), truths=np.stack(truths))
    os.replace(temporary, out / "examples.npz")
    temporary = out / ".examples.json.writing"
    temporary.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, out / "examples.json")


def _peak(heatmap: np.ndarray, options: ProtocolOptions) -> list[int]:
    """x, y of the maximum within the scored region."""
    region = options.scored_region(heatmap)
    margin = (heatmap.shape[0] - region.shape[0]) // 2
    y, x = np.unravel_index(int(region.argmax()), region.shape)
    return [int(x) + margin, int(y) + margin]


def choose_examples(scores: Scores) -> list[tuple[int, str]]:
    """Sample and rank ("best", "median", "worst" by IoU) for each category, fewer where it has fewer samples."""
    overlap = scores.iou.mean(axis=1)  # NaN where there is no truth to overlap with
    chosen: list[tuple[int, str]] = []
    for c in range(len(scores.categories)):
        members = np.flatnonzero((scores.category_index == c) & np.isfinite(overlap))
        order = members[np.argsort(-overlap[members], kind="stable")]
        picks = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"} if len(order) >= 3 else {}
        picks = picks or dict(zip(range(len(order)), ("best", "worst"), strict=False))
        chosen += [(int(order[k]), rank) for k, rank in sorted(picks.items())]
    return chosen or [(0, "best")]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# Data sets of a config


def dataset_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Settings of one evaluation with defaults filled in. Raises UsageError for an unknown one or another protocol."""
    defaults = {
        "raw": "",
        "builder": {},
        "split": "test",
        "protocol": "afloc",
        "compatible": False,
        "prior_split": "train",
        "title": "",
        "bootstrap": RESAMPLES,
    }
    for key in given:
        if key not in defaults and key not in ("name", "directory"):
            known = ", ".join(["name", "directory", *defaults])
            raise UsageError(f"evaluation data set {given.get('name')!r}: unknown key {key!r}; known: {known}")
    settings = {**defaults, **given}
    if settings["protocol"] not in PROTOCOLS:
        raise UsageError(f"unknown protocol {settings['protocol']!r}; this program knows {', '.join(PROTOCOLS)}")
    return settings


def _evaluate_with(
    model: Model, untrained: Model | None, source: Source, out: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    return evaluate(
        model,
        source,
        out,
        settings["protocol"],
        prior_source=open_prior(settings),
        untrained=untrained,
        compatible=settings["compatible"],
        resamples=settings["bootstrap"],
        title=settings["title"],
        settings=settings,
    )


def _folder_name(settings: dict[str, Any], taken: dict[str, Any]) -> str:
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", settings["title"] or settings["name"]).strip("._") or "dataset"
    candidates = itertools.chain([base, f"{base}_{settings['split']}"], (f"{base}_{n}" for n in itertools.count(2)))
    return next(name for name in candidates if name not in taken)


def _open(settings: dict[str, Any], split: str) -> Source:
    return open_source(settings["name"], settings["directory"], split, raw=settings["raw"], builder=settings["builder"])


def open_prior(settings: dict[str, Any]) -> Source | None:
    """The split that makes the location prior; None when the data set has no such split."""
    if not settings["prior_split"] or settings["prior_split"] == settings["split"]:
        return None
    try:
        return _open(settings, settings["prior_split"])
    except UserError:
        return None  # evaluation data without a training part


def _finished(folder: Path, weights: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of an earlier evaluation with the same weights and settings."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    same = summary.get("provenance", {}).get("weights_sha256") == weights
    return summary if same and summary.get("settings") == json.loads(json.dumps(settings)) else None
