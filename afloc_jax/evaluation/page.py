"""The report page of a working directory, report/index.html.

Style, charts (SVG) and pictures (data URIs) are inside the file, so that it can be mailed, archived and opened without
a network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from afloc_jax.errors import UserError
from afloc_jax.evaluation.report.numbers import (
    hashes,
    images_shown,
    on_few,
    part_of,
    read_object,
    short_hash,
)
from afloc_jax.evaluation.report.small_charts import cell
from afloc_jax.evaluation.report.templates import environment
from afloc_jax.evaluation.report.training import Logged, curves, read_metrics
from afloc_jax.evaluation.task import JsonObject, Section
from afloc_jax.evaluation.tasks import task_of
from afloc_jax.files import Path, write_whole
from afloc_jax.inference import overlays
from afloc_jax.settings import Json
from afloc_jax.weights.card import flatten
from data_pipelines.what_images import DRAWN, images_of, only_drawings


@dataclass(frozen=True)
class Evaluation:
    """One result folder on the page. `task` names the folder of its template."""

    task: str
    title: str
    summary: JsonObject
    provenance: JsonObject
    hashes: Sequence[tuple[str, str]]
    section: Section

    @property
    def heading(self) -> str:
        """The title of its section."""
        return f"{self.title}: {self.section.subject}" if self.section.subject else self.title


def write_report(workdir: str | Path) -> Path:
    """Writes `workdir/report/index.html` from the files of a run: config, metrics, evaluations with example maps.

    `workdir` may also be the result folder of one `afloc evaluate` or `afloc score`. The page says which parts are
    missing. Returns the path of the page. Raises UserError for a folder without results, or with a damaged file.
    """
    workdir = Path(workdir)
    config = read_object(workdir / "config.json")
    rows = read_metrics(workdir / "metrics.jsonl")
    found = sorted(workdir.glob("evaluation/*/summary.json")) + sorted(workdir.glob("summary.json"))
    evaluations = [_evaluation(path.parent) for path in found]
    evaluations.sort(key=lambda evaluation: str(evaluation.provenance.get("created", "")))  # the order of the config
    if not config and not rows and not evaluations:
        raise UserError(
            f"{workdir}: no config.json, metrics.jsonl, summary.json or evaluation/ to report on; "
            "give a run's workdir or the folder of an evaluation"
        )
    made = environment()
    made.filters |= {"cell": cell, "few": on_few, "jpeg": overlays.jpeg_uri, "outline": overlays.outline_path}
    page = made.get_template("report/template.html.jinja").render(
        name=config.get("name") or (evaluations[0].title if evaluations else workdir.name),
        trained=bool(config or rows),
        labels="transfer" in config,  # what the run learned from
        facts=_facts(workdir, config, rows, evaluations),
        images=_images(config, evaluations),
        curves=curves(rows),
        evaluations=evaluations,
        settings=flatten(config),
    )
    target = workdir / "report" / "index.html"
    target.parent.mkdir(exist_ok=True)
    write_whole(target, page)
    return target


def _images(config: JsonObject, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the images of the page are, in its first lines."""
    trained_on = part_of(config, "data").get("dataset")
    lines = [f"Training images: {images_of(str(trained_on))}."] if trained_on else []
    for evaluation in evaluations:
        name = part_of(evaluation.summary, "settings").get("name")
        lines.append(f"Images of {evaluation.title}: {images_shown(evaluation.summary)}.")
        before = evaluation.provenance.get("trained_on")
        if name != DRAWN and isinstance(before, list) and only_drawings([str(one) for one in before]):
            lines.append("The model was trained on drawings (phantoms) alone, and on no image of a patient.")
    return list(dict.fromkeys(lines))


def _evaluation(folder: Path) -> Evaluation:
    summary = read_object(folder / "summary.json")
    task = task_of(summary, str(folder / "summary.json"))
    named = summary.get("title") or part_of(summary, "settings").get("name") or folder.name.replace("_", " ")
    provenance = part_of(summary, "provenance")
    section = task.section(folder, summary)
    return Evaluation(task.name, str(named), summary, provenance, hashes(provenance, section.data), section)


def _facts(
    workdir: Path, config: JsonObject, rows: Sequence[Logged], evaluations: Sequence[Evaluation]
) -> list[tuple[str, str]]:
    flat = flatten(config)
    run = read_object(workdir / "run.json")
    evaluated = evaluations[0].provenance if evaluations else {}
    provenance = {**evaluated, **run}
    steps = max((row["step"] or 0 for row in rows if "step" in row), default=None)
    image, size, pairs = flat.get("model.image.backbone"), flat.get("model.image.input_size"), run.get("pairs")
    facts = [
        (
            "Training data",
            f"{flat['data.dataset']}{f', {pairs:,} pairs' if pairs else ''}" if "data.dataset" in flat else "",
        ),
        ("Image encoder", f"{image}, {size} px" if image else None),
        ("Shared width", flat.get("model.projection_dim")),
        ("Batch", flat.get("training.batch_size")),
        ("Steps", f"{steps:,}" if steps is not None else None),
        ("Extended", run.get("extended")),
        ("Seed", flat.get("seed")),
        ("Weights", short_hash(provenance.get("weights_sha256"))),
        ("Config", short_hash(provenance.get("config_sha256"))),
        ("Training records", short_hash(run.get("data_sha256"))),
        ("Device", provenance.get("device")),
        ("Code", provenance.get("code")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in part_of(provenance, "versions").items())),
        ("Started", _moment(run.get("created"))),
        ("Evaluated", _moment(evaluated.get("created"))),
    ]
    return [(key, str(value)) for key, value in facts if value not in (None, "")]


def _moment(text: Json) -> str:
    return str(text or "").replace("T", " ").replace("+00:00", " UTC")
