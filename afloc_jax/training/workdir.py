"""The working directory of a run: the names of its files, and the check that it belongs to one config."""

import dataclasses
import errno
import os
from collections.abc import Mapping

from flax.traverse_util import flatten_dict

from afloc_jax import buckets
from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, read_json, write_json
from afloc_jax.seals import read_seal
from afloc_jax.settings import Json, Settings
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.folder import WEIGHTS

CONFIG = "config.json"  # the config that the directory belongs to
RUN = "run.json"  # the origin of the run (see provenance.py)
FINISHED = "finished.json"  # written once the model is saved
METRICS = "metrics.jsonl"
EXTENDED = "extended.json"  # where the run was extended, see extension.py
LEARNED = "learned.json"  # in the folder of the tokenizer: how its vocabulary was learned
CHECKPOINTS, MODEL, TOKENIZER, NONFINITE = "checkpoints", "model", "tokenizer", "nonfinite"

# Keys that a rerun in the same working directory may change: where files lie, what is logged and kept, what is
# evaluated, how the loss is computed, and over how many devices the state is split. None of them changes the trained
# parameters, except that training.fsdp and loss.low_rank change rounding, as another number of devices does.
MAY_CHANGE = (
    "data.directory",
    "data.cache",
    "data.raw",
    "data.workers",
    "data.features",
    "model.text.tokenizer",  # the working directory has a copy of its own after the first run
    "training.log_every",
    "training.keep_best",
    "training.extend",
    "training.trackers",
    "training.fsdp",
    "loss.tile_memory",
    "loss.kept_memory",
    "loss.low_rank",
    "evaluation",
)
LENGTHS = ("training.steps", "training.epochs")  # what may grow where a finished run is extended
_NAMED_DIFFERENCES = 8


@dataclasses.dataclass(frozen=True)
class Finished:
    """The content of finished.json, which is written when training has ended."""

    steps: int
    best_step: int
    best_validation_loss: float | None
    final_validation_loss: float | None
    stopped_early: bool
    training_seconds: float
    evaluation: Json = None  # `config.evaluation` of the last evaluation that succeeded; None if none has


def read_finished(workdir: Path) -> Finished | None:
    """The content of finished.json; None while there is no such file, or where files of the model are missing.

    In the latter case the model is written again from the best checkpoint. Raises UserError for a damaged file.
    """
    path = workdir / FINISHED
    if not path.exists() or missing_from_model(workdir):
        return None
    remedy = "delete it, and the same command writes the model again from the best checkpoint"
    content = read_json(path, remedy)
    known = {field.name: field.default for field in dataclasses.fields(Finished)}
    needed = {name for name, default in known.items() if default is dataclasses.MISSING}
    if not (isinstance(content, dict) and needed <= {*content} <= {*known} and type(content["steps"]) is int):
        raise UserError(f"{path}: is not what this program writes; {remedy}")
    return Finished(**content)


def missing_from_model(workdir: Path) -> list[str]:
    """The files that the model of a finished run lacks."""
    model = workdir / MODEL
    names = {CONFIG, WEIGHTS, *(read_seal(model) or ())}
    return sorted(name for name in names if not (model / name).exists())


def differences(ours: Mapping[str, Json], theirs: Mapping[str, Json]) -> dict[str, tuple[Json, Json]]:
    """The dotted keys in which two configs differ, with both values (None where a key is absent).

    The keys of MAY_CHANGE are left out.
    """
    a, b = (flatten_dict(dict(config), sep=".") for config in (ours, theirs))
    return {
        key: (a.get(key), b.get(key))
        for key in sorted({*a, *b})
        if not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
        and (key not in a or key not in b or a[key] != b[key])
    }


def check_workdir(config: RunConfig, workdir: Path) -> None:
    """Checks that `workdir` is new or belongs to `config`, whose keys of MAY_CHANGE may differ. It writes nothing.

    Where `training.extend` says how a finished run goes on, its LENGTHS may differ as well; extension.py checks them.

    Raises:
        UsageError: the workdir belongs to another config (the error names the keys), or its config.json is unreadable.
    """
    found = differing(config, workdir)
    only_length = bool(found) and set(found) <= {*LENGTHS}
    if only_length and config.training.extend != "none":
        return
    extend = ", or extend the run if it is finished (training.extend, docs/training.md)" if only_length else ""
    refuse(found, workdir, extend)


def differing(config: Settings, workdir: Path) -> dict[str, tuple[Json, Json]]:
    """The keys in which a config differs from that of `workdir`, as `differences` has them; none for a new workdir.

    A setting that came after the workdir was made had its default there. Raises UsageError as `check_workdir` does.
    """
    path = workdir / CONFIG
    if buckets.is_bucket(workdir):
        buckets.check(str(workdir))
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir}: is a file, not a folder; choose another")
    if not path.exists():
        return {}
    try:
        other = read_json(path, "restore it or choose another --workdir")
    except UserError as error:
        raise UsageError(str(error)) from None
    if not isinstance(other, dict):
        raise UsageError(f"{path}: is no config of a run; restore it or choose another --workdir")
    defaults = flatten_dict(type(config)().plain(), sep=".")
    return {
        key: (ours, theirs)
        for key, (ours, theirs) in differences(config.plain(), other).items()
        if theirs is not None or key not in defaults or ours != defaults[key]
    }


def refuse(found: Mapping[str, tuple[Json, Json]], workdir: Path, remedy: str = "") -> None:
    """Raises UsageError where `differing` found a key. `remedy` says what else than another workdir may help."""
    if found:
        named = list(found.items())[:_NAMED_DIFFERENCES]
        listed = "; ".join(f"{key}: there {theirs!r}, now {ours!r}" for key, (ours, theirs) in named)
        more = f"; and {len(found) - len(named)} more" if len(found) > len(named) else ""
        raise UsageError(f"{workdir} belongs to another config ({listed}{more}); choose another --workdir{remedy}")


def claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Checks `workdir` and writes config.json, after which it belongs to this config.

    It is called after the data are open and the model is built. A config that fails before can thus be corrected and
    run again in the same workdir.

    Raises:
        UsageError: the workdir belongs to another config, or cannot be a folder.
    """
    check_workdir(config, workdir)
    make_folder(workdir)
    write_json(workdir / CONFIG, config.plain())


def check_place(workdir: Path) -> None:
    """Refuses a working directory that cannot be made, before hours of preparation. It writes nothing.

    Raises:
        UsageError: the nearest folder above that exists is none, or may not be written. Buckets are not asked.
    """
    if buckets.is_bucket(workdir):
        return
    above = next(path for path in (workdir, *workdir.parents) if os.path.lexists(path))
    reason = errno.ENOTDIR if not above.is_dir() else 0 if os.access(above, os.W_OK | os.X_OK) else errno.EACCES
    if reason:
        raise UsageError(f"--workdir={workdir}: cannot be made a folder ({os.strerror(reason)}); choose another")


def make_folder(workdir: Path) -> None:
    """Creates the working directory. Raises UsageError where that is not possible, UserError for a bucket.

    Buckets have no folders, so there the right to write is checked.
    """
    if buckets.is_bucket(workdir):
        buckets.check(str(workdir), writable=True)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"--workdir={workdir}: cannot be made a folder ({error.strerror}); choose another") from error
