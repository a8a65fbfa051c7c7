"""Everything a working directory holds, on one page: report/index.html.

The page asks for nothing from elsewhere: style, charts (SVG) and pictures (data URIs) are in the file, so it can be
mailed, archived and opened without a network.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from afloc_jax.errors import UserError
from afloc_jax.evaluation.published import published_scores
from afloc_jax.evaluation.report.charts import curve_chart, interval_chart, smooth
from afloc_jax.evaluation.report.failures import worst_samples
from afloc_jax.files import write_whole
from afloc_jax.inference import overlays
from afloc_jax.levels import LEVELS
from afloc_jax.weights.card import flatten

METRICS = {
    "pointing": ("Pointing game", "share of samples whose hottest pixel lies inside the truth"),
    "iou": ("IoU", "overlap of the thresholded map with the truth"),
    "iou_true_positive": ("IoU, true positives", "overlap where both truth and prediction show the finding"),
    "dice": ("Dice", "the same overlap as an F-score"),
    "cnr": ("CNR", "contrast between inside and outside of the truth, in pooled standard deviations"),
}
BASELINES = {"location_prior": ("prior", "Location prior"), "untrained": ("untrained", "Untrained model")}
FAILURES = 15  # listed for each evaluation


def write_report(workdir: str | Path) -> Path:
    """Write `workdir/report/index.html` from what the run left: config, metrics, evaluations with example maps.

    The results of one `afloc evaluate` or `afloc score` have a page too: give their folder.

    Parts that are absent are left out and the page says so; a run without validation or evaluation still has a page.

    Returns:
        The path of the page.

    Raises:
        UserError: `workdir` is not a folder with a run in it, or a file in it is damaged.
    """
    workdir = Path(workdir)
    config = _read_json(workdir / "config.json")
    rows = _read_metrics(workdir / "metrics.jsonl")
    found = sorted(workdir.glob("evaluation/*/summary.json")) + sorted(workdir.glob("summary.json"))
    evaluations = [_evaluation(path.parent) for path in found]
    evaluations.sort(key=lambda evaluation: evaluation["provenance"].get("created", ""))  # as the config lists them
    if config is None and not rows and not evaluations:
        raise UserError(
            f"{workdir}: no config.json, metrics.jsonl, summary.json or evaluation/ to report on; "
            "give a run's workdir or the folder of an evaluation"
        )
    environment = Environment(
        loader=PackageLoader("afloc_jax.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "signed": signed}
    page = environment.get_template("template.html.jinja").render(
        name=(config or {}).get("name") or (evaluations[0]["title"] if evaluations else workdir.name),
        trained=config is not None or bool(rows),
        facts=_facts(workdir, config or {}, rows, evaluations),
        curves=_curves(rows),
        evaluations=evaluations,
        metrics=METRICS,
        settings=flatten(config or {}),
        scale=overlays.colour_scale(),
    )
    target = workdir / "report" / "index.html"
    target.parent.mkdir(exist_ok=True)
    write_whole(target, page)
    return target


# Numbers


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits with a true minus sign; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # noqa: RUF001 (+ 0.0: no minus zero)


def signed(value: float | None) -> str:
    """A difference: always with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and math.isfinite(value) and round(value, 3) > 0 else text


def interval(entry: Mapping[str, Any] | None) -> str:
    """The bounds of an interval, empty where there are none."""
    if not entry or entry.get("lower") is None or not math.isfinite(entry["lower"]):
        return ""
    return f"{number(entry['lower'])} to {number(entry['upper'])}"


# Training


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the last line of a run that was killed may be half a line
    return rows


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    wanted = [("loss", "Total loss"), *((f"loss/{level}", f"{level.capitalize()} level") for level in LEVELS)]
    wanted += [("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm")]
    wanted += [("examples_per_second", "Pairs per second")]
    curves = []
    for key, title in wanted:
        train, validation = _series(rows, key, "train"), _series(rows, key, "validation")
        if not len(train[0]) and not len(validation[0]):
            continue
        exact = key == "learning_rate"
        lines = [{"name": "training", "kind": "train" if exact else "raw", "steps": train[0], "values": train[1]}]
        if not exact:
            window = max(1, len(train[1]) // 25)
            lines.append({"name": "training", "kind": "train", "steps": train[0], "values": smooth(train[1], window)})
        lines.append({"name": "validation", "kind": "validation", "steps": validation[0], "values": validation[1]})
        floor = None if key.startswith("loss") else 0.0
        chart = curve_chart(lines, f"{title} over training steps", floor=floor, small=floor is not None)
        if not chart:
            continue
        curves.append(
            {
                "title": title,
                "svg": Markup(chart),  # our own SVG, its texts escaped
                "train": _last(train[1]),
                "validation": float(np.nanmin(validation[1])) if np.isfinite(validation[1]).any() else None,
                "small": not key.startswith("loss"),
            }
        )
    return curves


def _series(rows: Sequence[Mapping[str, Any]], key: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    # A resumed run logs some steps twice: the later line counts.
    found = {row["step"]: row[key] for row in rows if row.get("split") == split and key in row and "step" in row}
    steps = sorted(found)
    return np.array(steps, float), np.array([np.nan if found[s] is None else found[s] for s in steps], float)


def _last(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-max(1, len(finite) // 25) :].mean()) if len(finite) else None


# Evaluation


@dataclass(frozen=True)
class System:
    """One row of the tables: the model, a baseline, or a benchmark that was scored on the same samples."""

    key: str
    kind: str  # class of its marks in the style sheet
    title: str
    metrics: Mapping[str, Any]
    difference: Mapping[str, Any]

    def entry(self, metric: str, category: str | None = None) -> Mapping[str, Any]:
        """Mean and limits, empty where there are none; of all categories if none is named."""
        values = self.metrics.get(metric, {})
        return values.get("overall", {}) if category is None else values.get("per_category", {}).get(category, {})

    def at(self, metric: str, threshold: str) -> float | None:
        """Mean at one threshold of the map."""
        return self.metrics.get(metric, {}).get("per_threshold", {}).get(threshold, {}).get("mean")


def _systems(summary: Mapping[str, Any]) -> list[System]:
    systems = [System("model", "model", "Model", summary.get("metrics", {}), {})]
    for key, baseline in summary.get("baselines", {}).items():
        kind, title = BASELINES.get(key, ("benchmark", key.replace("_", " ")))
        systems.append(System(key, kind, title, baseline.get("metrics", {}), baseline.get("difference", {})))
    return systems


def _evaluation(folder: Path) -> dict[str, Any]:
    summary = _read_json(folder / "summary.json") or {}
    systems = _systems(summary)
    model = systems[0]
    present = [name for name in METRICS if name in model.metrics]
    categories = list(dict.fromkeys(c for name in present for c in model.metrics[name].get("per_category", {})))
    settings = summary.get("settings", {})
    data_set, published = published_scores(summary.get("title") or "", settings.get("name") or "")
    if summary.get("protocol") != "afloc":
        data_set, published = "", {}
    return {
        "name": folder.name,
        "title": summary.get("title") or settings.get("name") or folder.name.replace("_", " "),
        "summary": summary,
        "provenance": summary.get("provenance", {}),
        "hashes": _hashes(summary.get("provenance", {})),
        "present": present,
        "model": model,
        "systems": systems,
        "categories": categories,
        "thresholds": list(model.metrics.get("iou", {}).get("per_threshold", {})),
        "charts": [(METRICS[name][0], Markup(_category_chart(systems, name, categories))) for name in present],
        "published_on": data_set,
        "published": published,
        "presence": summary.get("presence"),
        "operating_points": summary.get("operating_points", {}),
        "failures": worst_samples(folder / "per_sample.csv", FAILURES),
        "gallery": _gallery(folder),
    }


def _hashes(provenance: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    named = [("weights", provenance.get("weights_sha256")), ("images and masks", provenance.get("data_sha256"))]
    files = [(name.replace("_", " "), entry) for name, entry in provenance.items() if isinstance(entry, Mapping)]
    named += [(name, entry["sha256"]) for name, entry in files if "sha256" in entry]
    return [(what, _short_hash(value)) for what, value in named if value]


def _category_chart(systems: Sequence[System], metric: str, categories: Sequence[str]) -> str:
    rows = [
        {
            "name": category or "all categories",
            "strong": category is None,
            "model": systems[0].entry(metric, category),
            "others": [(other.kind, other.entry(metric, category)) for other in systems[1:]],
        }
        for category in [*categories, None]
    ]
    high = 1.0 if metric == "pointing" else None
    return interval_chart(rows, f"{METRICS[metric][0]} of each category, model and baselines", high=high)


def _gallery(folder: Path) -> list[dict[str, Any]]:
    """Example maps by category: what `afloc_jax.evaluation.run` left in examples.npz and examples.json."""
    described = _read_json(folder / "examples.json")
    if not described or not (folder / "examples.npz").is_file():
        return []
    with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
        images, maps, truths = arrays["images"], arrays["heatmaps"], arrays["truths"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for i, example in enumerate(described):
        groups.setdefault(example["category"], []).append(
            {
                **example,
                "size": images[i].shape[0],
                "image": overlays.jpeg_uri(images[i]),
                "overlay": overlays.jpeg_uri(overlays.overlay(images[i], maps[i].astype(np.float32))),
                "outline": overlays.outline_path(truths[i]),
            }
        )
    return [{"category": category, "examples": examples} for category, examples in groups.items()]


# Facts


def _facts(
    workdir: Path,
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str]]:
    flat = flatten(config)
    run = _read_json(workdir / "run.json") or {}
    provenance = {**(evaluations[0]["provenance"] if evaluations else {}), **run}
    steps = max((row["step"] for row in rows if "step" in row), default=None)
    image, size = flat.get("model.image.backbone"), flat.get("model.image.input_size")
    pairs = f", {run['pairs']:,} pairs" if run.get("pairs") else ""
    facts = [
        ("Training data", f"{flat['data.dataset']}{pairs}" if "data.dataset" in flat else None),
        ("Image encoder", f"{image}, {size} px" if image else None),
        ("Shared width", flat.get("model.projection_dim")),
        ("Batch", flat.get("training.batch_size")),
        ("Steps", f"{steps:,}" if steps is not None else None),
        ("Seed", flat.get("seed")),
        ("Weights", _short_hash(provenance.get("weights_sha256"))),
        ("Config", _short_hash(provenance.get("config_sha256"))),
        ("Training records", _short_hash(run.get("data_sha256"))),
        ("Device", provenance.get("device")),
        ("Code", provenance.get("code")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items())),
        ("Started", _moment(run.get("created"))),
        ("Evaluated", _moment(evaluations[0]["provenance"].get("created")) if evaluations else None),
    ]
    return [(key, str(value)) for key, value in facts if value not in (None, "")]


def _moment(text: str | None) -> str | None:
    return text.replace("T", " ").replace("+00:00", " UTC") if text else None


def _short_hash(value: str | None) -> str | None:
    return f"{value[:16]}" if value else None


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove it and run the evaluation again") from None
