"""Training from top to bottom: config, data, model and optimiser, restore, loop, evaluate, report."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.sharing import wait_for_all
from afloc_jax.files import Path, absolute, read_json, write_json
from afloc_jax.ownership import Ownership
from afloc_jax.provenance import hash_of, provenance
from afloc_jax.settings import Json
from afloc_jax.training import extension, scales, start, tokenizer, workdir
from afloc_jax.training.assembly import Assembly, assemble
from afloc_jax.training.checkpoints import Checkpoints, ever_sealed, last_sealed
from afloc_jax.training.failures import StopSignal, explain
from afloc_jax.training.frozen import with_features
from afloc_jax.training.kernel_check import check_kernel
from afloc_jax.training.leaving import released_when_leaving
from afloc_jax.training.loop import Data, Loop
from afloc_jax.training.mesh import build_mesh, fetch
from afloc_jax.training.metrics import Writers
from afloc_jax.training.optimizer import Extension
from afloc_jax.training.processes import say
from afloc_jax.training.progress import Progress
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.step import TrainState
from afloc_jax.training.tracing import StepRange
from afloc_jax.training.trackers import check_installed
from afloc_jax.training.writer import Resumed
from afloc_jax.training.xla_flags import described
from afloc_jax.weights.card import flatten
from afloc_jax.weights.config import read_config
from afloc_jax.weights.folder import read_unseen, save_model
from data_pipelines import vocabulary
from data_pipelines.prepared import check_source, open_source


def train(
    config: RunConfig,
    folder: Path,
    dry_run: bool = False,
    profile: StepRange | None = None,
    from_scratch: bool = False,
) -> int:
    """Trains, saves the best weights as a model folder, evaluates, and writes the report. The same call again resumes.

    Args:
        config: the config of the run.
        folder: the working directory, which holds all files of the run (see the README).
        dry_run: only check the config, and the names and shapes in `init_from`.
        profile: steps to trace, which must not have been done yet.
        from_scratch: start at step 0 also where checkpoints were saved, if none of them is intact.

    Returns:
        Exit status: 0 finished, 128 + signal number when a signal stopped the run after saving.

    Raises:
        UsageError: the config is wrong, or the working directory belongs to another config or another run has it.
        UserError: the data are unusable, a loss is not finite, no checkpoint of a saved run is intact, or the
            evaluation failed (the model is saved by then).
        Interrupted: a signal came where nothing had to be saved, such as before the first step.
    """
    # --- Config
    config.check_batch(jax.device_count())
    check_installed(config.training.trackers)
    if profile and config.training.steps:  # otherwise their number depends on the data
        profile.check(0, config.training.steps)
    if dry_run:
        adopted = start.adopt(config, start.foreign_sources(config))
        run = assemble(adopted, build_mesh(fsdp=config.training.fsdp, one_group=config.one_group))
        run.trace()
        say(str(run.low_rank))
        say(f"{config.name}: the config is valid")
        return 0
    workdir.check_workdir(config, folder)
    workdir.check_place(folder)
    with StopSignal(holding=False) as stop, Ownership(folder, say) as owner, released_when_leaving(owner.release):
        if folder.is_dir():
            _take(owner)
        return _train(config, folder, profile, from_scratch, owner, stop)


def _train(
    config: RunConfig, folder: Path, profile: StepRange | None, from_scratch: bool, owner: Ownership, stop: StopSignal
) -> int:
    """`train` for the owner of the folder, which a new folder gets when it is made."""
    plan = extension.plan(config, folder)
    finished = None if plan.begins else workdir.read_finished(folder)
    if finished is not None and profile:
        profile.check(finished.steps, finished.steps)
    if finished is None:
        if (folder / workdir.FINISHED).exists() and not plan.begins:
            lacking = ", ".join(workdir.missing_from_model(folder))
            say(f"{folder / workdir.MODEL} lacks {lacking}: the model is written again from the best checkpoint")
        status = _train_model(config, folder, plan, profile, from_scratch, owner, stop)
        if status:
            return status
    elif finished.evaluation == config.evaluation.plain():
        say(f"{folder}: already finished after {finished.steps} steps; see {folder}/report/index.html")
        return 0

    # --- Evaluate and report
    wait_for_all("model saved")
    if jax.process_index() == 0:
        workdir.claim_workdir(config, folder)  # the evaluation may have changed
    _evaluate_and_report(config, folder)
    if jax.process_index() == 0:
        finished = workdir.read_finished(folder)
        assert finished is not None  # this process wrote it, or read it above
        finished = dataclasses.replace(finished, evaluation=config.evaluation.plain())
        write_json(folder / workdir.FINISHED, dataclasses.asdict(finished))
        say(f"{folder}: finished after {finished.steps} steps; see {folder}/report/index.html")
    return 0


def _take(owner: Ownership) -> None:
    """Makes this run the owner of its working directory; process 0 stands for all."""
    if jax.process_index() == 0:
        owner.take()


def _train_model(
    given: RunConfig,
    folder: Path,
    plan: extension.Plan,
    profile: StepRange | None,
    from_scratch: bool,
    owner: Ownership,
    stop: StopSignal,
) -> int:
    """Trains to the end, from the last checkpoint or from the start, and writes `model/` and finished.json."""
    # --- Data
    sources = start.foreign_sources(given)
    config = start.adopt(given, sources)
    data = open_data(config, folder)
    account = provenance(
        config_sha256=hash_of(config.plain()),
        data_sha256=data.training.content_hash,
        vocabulary_sha256=tokenizer.hash_of_vocabulary(data.tokenizer),
        pairs=len(data.training),
        validation_pairs=len(data.validation),
    )

    # --- Model and optimiser
    mesh = build_mesh(fsdp=config.training.fsdp, one_group=config.one_group)
    run = put_together(config, data, mesh, plan.entries)
    config = run.config
    plan.check(folder, run.total_steps, run.learning_rate, config.optimizer.lr)
    if extended := plan.told(run.total_steps):
        account["extended"] = extended
        say(f"{folder}: extended {extended}")
    if profile:
        profile.check(last_sealed(folder / workdir.CHECKPOINTS), run.total_steps)
    run.trace()  # the network and the loss may refuse the config: that must happen before any file is written
    check_kernel(run)
    variables = start.first_variables(config)
    if sources:
        variables, told = start.overlay(variables, sources, config.model)
        say(told)

    # --- Restore
    if plan.begins:
        wait_for_all("extension planned")  # before the files change that all processes have read
    is_known = (folder / workdir.CONFIG).exists()
    if jax.process_index() == 0:  # from here on the directory belongs to this config
        workdir.make_folder(folder)
        _take(owner)
        if not tokenizer.is_kept(folder):
            tokenizer.keep(config, folder, data)
        if plan.begins:
            extension.begin(folder, plan)
        workdir.claim_workdir(given, folder)
        write_json(folder / workdir.RUN, account)
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, config.training.keep_best, owner.check)
    state, progress = _restored(checkpoints, run.state(variables), from_scratch)
    if progress.step:
        say(f"{folder}: going on from step {progress.step} of {run.total_steps}")
    elif is_known:
        before = "no checkpoint is intact" if ever_sealed(checkpoints.folder) else "no checkpoint was saved before"
        say(f"{folder}: {before}; training starts at step 0")

    # --- Loop
    data = with_features(run, data, state)
    say(str(run.low_rank))
    say(described(_compilation_cache()))
    named = absolute(folder)
    resumed = Resumed(
        folder, progress.step, progress.validated_step, named.name, named.parent.name, flatten(given.plain())
    )
    writers = Writers(resumed, jax.process_index() == 0, config.training.trackers)
    loop = Loop(run, data, folder, checkpoints, writers, state, progress, profile)
    with contextlib.ExitStack() as closing:  # both, also where the disk is full for one
        closing.callback(checkpoints.close)
        closing.callback(writers.close)
        stopped = loop.run(stop)
    if stopped and stop.received:
        say(f"{stop.received.name}: saved at step {progress.step}; run the same command to go on")
        return stop.exit_status
    stop.let_go()

    _save_best(loop, account)
    return 0


def _save_best(loop: Loop, account: Mapping[str, Json]) -> None:
    """Writes `model/`, with the weights of the best checkpoint, and finished.json."""
    config, data, progress = loop.assembly.config, loop.data, loop.progress
    saved, best_step = loop.checkpoints.restore_best(loop.state.to_saved())
    loop.checkpoints.close()
    best = fetch({"params": saved["params"], "batch_stats": saved["batch_stats"]})
    learned, best["params"] = scales.told(best["params"]), scales.of_model(best["params"])
    if jax.process_index() != 0:
        return
    training = config.training.plain()
    del training["epochs" if config.training.steps else "steps"], training["extend"], training["trackers"]  # no matter
    recipe: dict[str, Json] = {
        "loss": config.loss.plain(),
        **({"learned scales": learned} if learned else {}),
        "optimizer": config.optimizer.plain(),
        "training": training,
        "best step": best_step,
        "steps": progress.step,
        **({"extended": account["extended"]} if "extended" in account else {}),
        "device": account["device"],
        "code": account["code"],
    }
    about: dict[str, Json] = {"data set": config.data.dataset, "training pairs": len(data.training)}
    unseen = read_unseen(loop.workdir / workdir.TOKENIZER)
    card: dict[str, Json] = {"data": about, "recipe": recipe, **_vocabulary_of(loop)}
    before = _trained_before(config)
    save_model(loop.workdir / workdir.MODEL, best, config, data.tokenizer, card, unseen, before)
    write_json(loop.workdir / workdir.FINISHED, dataclasses.asdict(progress.finished(best_step)))


def _vocabulary_of(loop: Loop) -> dict[str, Json]:
    """What the model card says of the vocabulary: how it was learned, here or by the model that training started from.

    Empty for a vocabulary from elsewhere, or one that an earlier version learned.
    """
    if (learned := loop.workdir / workdir.TOKENIZER / workdir.LEARNED).is_file():
        return {"vocabulary": vocabulary.VocabularyAccount(**read_json(learned)).about}
    config = loop.assembly.config
    folder = None if config.model.text.tokenizer else start.model_folder(config)
    before = read_config(folder).card.get("vocabulary") if folder else None
    return {"vocabulary": before} if before else {}


def _trained_before(config: RunConfig) -> tuple[str, ...]:
    """What the weights that a run starts from were trained on; empty where it starts at random."""
    if not config.init_from:
        return ()
    folder = start.model_folder(config)
    return (read_config(folder).trained_on if folder else ()) or ("unknown",)


def _compilation_cache() -> str | None:
    """The folder where JAX keeps compiled programs; None where it keeps none."""
    values = jax.config.values
    folder: str | None = values["jax_compilation_cache_dir"] if values["jax_enable_compilation_cache"] else None
    return folder


def _restored(checkpoints: Checkpoints, first: TrainState, from_scratch: bool) -> tuple[TrainState, Progress]:
    """State and progress of the last intact checkpoint, or the state before step 0 where none was ever saved."""
    restored = checkpoints.restore_last(first.to_saved(), from_scratch)
    if restored is None:
        return first, Progress()
    state, progress = restored
    # Checkpoints of earlier versions have no `validated_step`; they were saved after their validation.
    return TrainState.from_saved(state), Progress(**{"validated_step": progress["step"], **progress})


# Data


def put_together(config: RunConfig, data: Data, mesh: Mesh, extensions: Sequence[Extension] = ()) -> Assembly:
    """The parts of a run on its data, on these devices."""
    side: int = data.training[0].image.shape[0]
    builder = {**config.data.builder, "image_size": side}  # the model folder states the size of the records
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, builder=builder))
    config = start.with_vocabulary(config, data.tokenizer)
    return assemble(config, mesh, _steps_per_epoch(config, len(data.training)), extensions)


def open_data(config: RunConfig, folder: Path) -> Data:
    """Opens the training and validation split, and checks the data of the evaluation."""
    where = config.data
    opened = functools.partial(
        open_source, raw=where.raw, builder=where.builder, cache=where.cache, reading=where.reading
    )
    training, validation = (
        opened(where.dataset, where.directory, split) for split in (where.train_split, where.validation_split)
    )
    batch = config.training.batch_size
    if where.validation_drop_last and len(validation) < batch:
        raise UsageError(
            f"config.data.validation_drop_last: the {len(validation)} pairs of split {where.validation_split!r} do not "
            f"fill a batch of {batch}; set it to False, or lower config.training.batch_size"
        )
    check_evaluation(config)  # the training data come first, because they may be evaluated too
    return Data(training, validation, *tokenizer.opened(config, folder, training))


def check_evaluation(config: RunConfig) -> None:
    """Refuses evaluation data that cannot be opened, before hours of training.

    Raises:
        UserError: names the data set.
    """
    for entry in config.evaluation.entries:
        dataset = entry.settings
        try:
            check_source(dataset.name, dataset.directory, raw=dataset.raw, builder=dataset.builder, cache=dataset.cache)
        except UserError as error:
            raise type(error)(f"config.evaluation.datasets, {dataset.name}: {error}") from None


def _steps_per_epoch(config: RunConfig, pairs: int) -> int:
    batch_size = config.training.batch_size
    if pairs < batch_size:
        raise UsageError(
            f"config.training.batch_size = {batch_size}: split {config.data.train_split!r} of {config.data.dataset} "
            f"has only {pairs} pairs; lower it"
        )
    return pairs // batch_size


# The end of a run


def _evaluate_and_report(config: RunConfig, folder: Path) -> None:
    """Evaluates the saved model, all processes together, and writes the report page."""
    # Imported here, so that training starts without the packages that only the evaluation needs.
    from afloc_jax.evaluation.page import write_report
    from afloc_jax.evaluation.presence.fit import calibrate_run
    from afloc_jax.evaluation.run import evaluate_datasets

    try:
        if config.evaluation.calibrate and (why_not := calibrate_run(folder / workdir.MODEL, config.data)):
            say(f"{folder / workdir.MODEL}: not calibrated: {why_not}")
        evaluate_datasets(config.evaluation, folder)
        if jax.process_index() == 0:
            write_report(folder)
    except Exception as error:
        raise UserError(
            f"the trained model is safe in {folder}/{workdir.MODEL}, but its evaluation failed: {explain(error)}; "
            "fix that and run the same command again: only the evaluation is left"
        ) from error
