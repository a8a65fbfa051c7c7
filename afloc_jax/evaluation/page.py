"""Everything a working directory holds, on one page: report/index.html.

The page asks for nothing from elsewhere: style, charts (SVG) and pictures (data URIs) are in the file, so it can be
mailed, archived and opened without a network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from afloc_jax.errors import UserError
from afloc_jax.evaluation.report.numbers import hashes, interval, number, read_json, short_hash, signed
from afloc_jax.evaluation.report.training import curves, read_metrics
from afloc_jax.evaluation.task import Section
from afloc_jax.evaluation.tasks import task_of
from afloc_jax.files import write_whole
from afloc_jax.weights.card import flatten


@dataclass(frozen=True)
class Evaluation:
    """One folder of results on the page; `task` names the room of its template."""

    task: str
    title: str
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    hashes: Sequence[tuple[str, str | None]]
    section: Section


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
    config = read_json(workdir / "config.json")
    rows = read_metrics(workdir / "metrics.jsonl")
    found = sorted(workdir.glob("evaluation/*/summary.json")) + sorted(workdir.glob("summary.json"))
    evaluations = [_evaluation(path.parent) for path in found]
    evaluations.sort(key=lambda evaluation: evaluation.provenance.get("created", ""))  # as the config lists them
    if config is None and not rows and not evaluations:
        raise UserError(
            f"{workdir}: no config.json, metrics.jsonl, summary.json or evaluation/ to report on; "
            "give a run's workdir or the folder of an evaluation"
        )
    environment = Environment(
        loader=PackageLoader("afloc_jax.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "signed": signed}
    page = environment.get_template("report/template.html.jinja").render(
        name=(config or {}).get("name") or (evaluations[0].title if evaluations else workdir.name),
        trained=config is not None or bool(rows),
        facts=_facts(workdir, config or {}, rows, evaluations),
        curves=curves(rows),
        evaluations=evaluations,
        settings=flatten(config or {}),
    )
    target = workdir / "report" / "index.html"
    target.parent.mkdir(exist_ok=True)
    write_whole(target, page)
    return target


def _evaluation(folder: Path) -> Evaluation:
    summary = read_json(folder / "summary.json") or {}
    task = task_of(summary, str(folder / "summary.json"))
    named = summary.get("title") or summary.get("settings", {}).get("name") or folder.name.replace("_", " ")
    provenance = summary.get("provenance", {})
    section = task.section(folder, summary)
    return Evaluation(task.name, named, summary, provenance, hashes(provenance, section.data), section)


def _facts(
    workdir: Path,
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Evaluation],
) -> list[tuple[str, str]]:
    flat = flatten(config)
    run = read_json(workdir / "run.json") or {}
    provenance = {**(evaluations[0].provenance if evaluations else {}), **run}
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
        ("Weights", short_hash(provenance.get("weights_sha256"))),
        ("Config", short_hash(provenance.get("config_sha256"))),
        ("Training records", short_hash(run.get("data_sha256"))),
        ("Device", provenance.get("device")),
        ("Code", provenance.get("code")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items())),
        ("Started", _moment(run.get("created"))),
        ("Evaluated", _moment(evaluations[0].provenance.get("created")) if evaluations else None),
    ]
    return [(key, str(value)) for key, value in facts if value not in (None, "")]


def _moment(text: str | None) -> str | None:
    return text.replace("T", " ").replace("+00:00", " UTC") if text else None
