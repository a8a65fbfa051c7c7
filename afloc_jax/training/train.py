"""Training from top to bottom: config, mesh, data, model, optimiser, restore, loop, evaluate, report."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError, UserError
from afloc_jax.models import build, initial_variables, trainable
from afloc_jax.provenance import hash_of, provenance
from afloc_jax.training import ahead_of_time, start
from afloc_jax.training import config as configs
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.config import write_json
from afloc_jax.training.failures import StopSignal, explain, explained
from afloc_jax.training.loop import Loop, Progress
from afloc_jax.training.mesh import build_mesh, fetch, place_state
from afloc_jax.training.metrics import MetricsWriter
from afloc_jax.training.optimizer import build_direction, build_schedule, freeze
from afloc_jax.training.step import batch_like, build_train_step, build_validation_step, new_state
from afloc_jax.weights.folder import load_model, read_config, save_model
from data_pipelines import tokens
from data_pipelines.batches import training_tokenizer
from data_pipelines.prepared import check_source, open_source

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
FINISHED = "finished.json"


def train(config: ConfigDict, workdir: Path, dry_run: bool = False) -> int:
    """Train, keep the best weights as a model folder, evaluate, report. The same call again resumes.

    Args:
        config: a config with the keys of configs/afloc.py.
        workdir: everything the run writes; interface as in the README.
        dry_run: check the config, and the names and shapes in `init_from`, and stop.

    Returns:
        Exit status: 0 finished, 128 + signal number when a signal stopped the run after saving.

    Raises:
        UsageError: a wrong config, or a workdir of another one. UserError: unusable data, a loss that is not finite,
            or an evaluation that failed (the model is saved by then).
    """
    # --- Config
    configs.validate(config, jax.device_count())
    if dry_run:
        ahead_of_time.trace_step(start.adopt(config, start.foreign_sources(config.init_from)))
        _say(f"{config.name}: the config is valid")
        return 0
    configs.check_workdir(config, workdir)
    finished = _read_finished(workdir)
    if finished is None:
        status = _train_model(config, workdir)
        if status:
            return status
        finished = _read_finished(workdir) or {}
    elif finished["evaluation"] == configs.resolve(config)["evaluation"]:
        _say(f"{workdir}: already finished after {finished['steps']} steps; see {workdir}/report/index.html")
        return 0

    # --- Evaluate and report
    if jax.process_index() == 0:
        configs.claim_workdir(config, workdir)  # the evaluation may have changed
        _evaluate_and_report(config, workdir)
        write_json(workdir / FINISHED, {**finished, "evaluation": configs.resolve(config)["evaluation"]})
        _say(f"{workdir}: finished after {finished['steps']} steps; see {workdir}/report/index.html")
    return 0


def _train_model(config: ConfigDict, workdir: Path) -> int:
    """Train from the last checkpoint, or the start, to the end; leaves `model/` and finished.json."""
    # --- Mesh
    mesh = build_mesh(fsdp=config.training.fsdp)

    # --- Data
    given, weights = config, start.foreign_sources(config.init_from)
    config = start.adopt(config, weights)
    source, validation = _open_sources(config)
    if jax.process_index() == 0:  # the one that evaluates; after the training data, which may be evaluated too
        _check_evaluation(config)
    tokenizer = _tokenizer(config, workdir, source)
    steps_per_epoch, total_steps = _length(config, len(source))
    run = provenance(
        config_sha256=hash_of(configs.resolve(config)),
        data_sha256=source.content_hash,
        pairs=len(source),
        validation_pairs=len(validation),
    )

    # --- Model
    side = source[0].image.shape[0]
    config = _with_vocabulary(config, tokenizer)
    with config.unlocked():  # for the model folder: records may be of another size than `data.builder` says
        config.data.builder.image_size = side
    model = build(config.model, dtype=PRECISIONS[config.training.precision])
    variables = _initial_variables(config)
    if weights:
        variables, told = start.overlay(variables, weights, config.model)
        _say(told)

    # --- Optimiser
    direction = freeze(build_direction(config.optimizer), trainable(variables["params"], config.model))
    schedule = build_schedule(config.optimizer, steps_per_epoch, total_steps)
    # Placed first, so that the optimiser's state is made where it belongs and never lies on one device whole.
    state = place_state(new_state(place_state(variables, mesh), direction), mesh)
    train_step = build_train_step(model, config, direction, schedule, mesh)
    # On shapes alone: what only the network or the loss can refuse is refused before anything is written.
    with explained():
        jax.eval_shape(train_step, state, batch_like(config, side, mesh))

    # --- Restore
    if jax.process_index() == 0:  # from here on the directory is this config's
        configs.make_folder(workdir)
        if not (workdir / configs.CONFIG).exists():
            tokens.save_tokenizer(tokenizer, workdir / "tokenizer")
        configs.claim_workdir(given, workdir)
        write_json(workdir / "run.json", run)
    checkpoints = Checkpoints(workdir / "checkpoints", config.training.keep_best)
    restored = checkpoints.restore_last(state)
    progress = Progress()
    if restored is not None:
        # A checkpoint without `validated_step`, of an older version, was saved after its validation.
        state, progress = restored[0], Progress(**{"validated_step": restored[1]["step"], **restored[1]})
        _say(f"{workdir}: going on from step {progress.step} of {total_steps}")

    # --- Loop
    writer = MetricsWriter(workdir, progress.step, progress.validated_step, active=jax.process_index() == 0)
    loop = Loop(
        config, workdir, source, validation, tokenizer, mesh, checkpoints, writer,
        train_step, build_validation_step(model, config, mesh), steps_per_epoch, total_steps,
    )  # fmt: skip
    with StopSignal() as stop:
        try:
            stopped = loop.run(state, progress, stop)
        finally:
            writer.close()
            checkpoints.close()
    if stopped and stop.received:
        _say(f"{stop.received.name}: saved at step {loop.progress.step}; run the same command to go on")
        return stop.exit_status

    # --- Best weights
    state, best_step = checkpoints.restore_best(loop.state)
    checkpoints.close()
    variables = fetch({"params": state.params, "batch_stats": state.batch_stats})
    if jax.process_index() == 0:
        _save_best(config, workdir, variables, best_step, loop.progress, tokenizer, run)
    return 0


# Data


def _open_sources(config: ConfigDict) -> tuple[Any, Any]:
    data = config.data
    opened = [
        open_source(data.dataset, data.directory, split, raw=data.raw, builder=data.builder.to_dict())
        for split in (data.train_split, data.validation_split)
    ]
    return opened[0], opened[1]


def _check_evaluation(config: ConfigDict) -> None:
    """That there is something to evaluate on: better said before hours of training than after them."""
    for dataset in config.evaluation.datasets:
        given = {"raw": "", "builder": {}, **dataset}
        try:
            check_source(given["name"], given["directory"], raw=given["raw"], builder=dict(given["builder"]))
        except UserError as error:
            raise type(error)(f"config.evaluation.datasets, {given['name']}: {error}") from None


def _tokenizer(config: ConfigDict, workdir: Path, source: Any) -> Any:
    """The tokenizer that the workdir keeps; on the first run the config's, init_from's, or a learned one."""
    if (workdir / configs.CONFIG).exists() and (workdir / "tokenizer" / "tokenizer.json").exists():
        return tokens.load_tokenizer(workdir / "tokenizer")
    if start.is_model_folder(config.init_from) and not config.model.text.tokenizer:
        return tokens.load_tokenizer(config.init_from)
    text = config.model.text
    return training_tokenizer(source, text.tokenizer, text.bert.get("vocab_size", tokens.LEARNED_VOCABULARY))


def _length(config: ConfigDict, pairs: int) -> tuple[int, int]:
    """Steps of an epoch and of the run."""
    batch_size = config.training.batch_size
    if pairs < batch_size:
        raise UsageError(
            f"config.training.batch_size = {batch_size}: split {config.data.train_split!r} of {config.data.dataset} "
            f"has only {pairs} pairs; lower it"
        )
    steps_per_epoch = pairs // batch_size
    return steps_per_epoch, config.training.steps or config.training.epochs * steps_per_epoch


# Model


def _with_vocabulary(config: ConfigDict, tokenizer: Any) -> ConfigDict:
    """A copy of the config whose BERT has an embedding for every entry of the tokenizer."""
    size = 1 + max(tokenizer.get_vocab().values())
    config = config.copy_and_resolve_references()
    bert = config.model.text.bert
    if start.is_model_folder(config.init_from) and "vocab_size" not in bert:
        size = max(size, read_config(config.init_from).architecture.text.structure.vocab_size)
    elif config.model.text.tokenizer and "vocab_size" in bert:
        if bert.vocab_size < size:
            raise UsageError(
                f"config.model.text.bert.vocab_size = {bert.vocab_size}: must be at least {size}, the tokenizer's"
            )
        size = bert.vocab_size
    with config.unlocked():
        bert.vocab_size = size  # a learned vocabulary may come out smaller than the size that was asked for
    return config


def _initial_variables(config: ConfigDict) -> dict[str, Any]:
    """Parameters and statistics before step 0: random from the seed, or those of the model folder `init_from`."""
    from_folder = start.is_model_folder(config.init_from)
    if from_folder:
        variables = dict(load_model(config.init_from).variables)
    make, key = functools.partial(initial_variables, build(config.model)), jax.random.key(config.seed)
    if not from_folder:
        # Run once: on a CPU optimising the code of hundreds of random draws takes longer than running it unoptimised.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(make, compiler_options=options)(key)
    wanted = jax.eval_shape(make, key)
    shapes = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (wanted, variables)
    ]
    for name in sorted({*shapes[0], *shapes[1]}):
        if shapes[0].get(name) != shapes[1].get(name):
            raise UsageError(
                f"config.init_from = {config.init_from}: {name} is {shapes[1].get(name)} there and "
                f"{shapes[0].get(name)} in config.model; make config.model that of the folder's config.json"
            )
    return variables


# The end of a run


def _save_best(
    config: ConfigDict, workdir: Path, variables: Any, step: int, progress: Progress, tokenizer: Any, run: dict
) -> None:
    plain = configs.resolve(config)
    card = {
        "data": {"data set": config.data.dataset, "training pairs": run["pairs"]},
        "recipe": {"loss": plain["loss"], "optimizer": plain["optimizer"], "training": plain["training"]}
        | {"best step": step, "steps": progress.step, "device": run["device"], "code": run["code"]},
    }
    save_model(workdir / "model", variables, config, tokenizer, card)
    facts = {"steps": progress.step, "best_step": step, "best_validation_loss": progress.best_loss}
    facts |= {"final_validation_loss": progress.last_loss, "stopped_early": progress.stopped_early}
    write_json(workdir / FINISHED, {**facts, "training_seconds": progress.seconds, "evaluation": None})


def _read_finished(workdir: Path) -> dict[str, Any] | None:
    path = workdir / FINISHED
    return json.loads(path.read_text()) if path.exists() and (workdir / "model").is_dir() else None


def _evaluate_and_report(config: ConfigDict, workdir: Path) -> None:
    """Scores of the saved model, then the page."""
    # Training must not fail to start for want of what only the evaluation needs.
    from afloc_jax.evaluation.page import write_report
    from afloc_jax.evaluation.run import evaluate_datasets
    from afloc_jax.evaluation.tasks import EvaluationSettings

    try:
        evaluate_datasets(EvaluationSettings.read(config.evaluation, prefix="config."), workdir)
        write_report(workdir)
    except Exception as error:
        raise UserError(
            f"the trained model is safe in {workdir}/model, but its evaluation failed: {explain(error)}; "
            "mend that and run the same command again, only the evaluation is left"
        ) from error


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, file=sys.stderr)
