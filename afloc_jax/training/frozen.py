"""The features of a frozen image tower, computed once for every record and read in every step (`data.features`).

They are the outputs of the backbone before the projections, in the precision of the run, so a step computes what it
would from pixels. They belong to the weights of the backbone, the settings by which it reads images, the precision and
the records: each combination has a folder of its own. Where one of them changes, nothing old is read.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Array, PyTree
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.files import check_space, user_path
from afloc_jax.models.afloc import backbone_features
from afloc_jax.models.backbone import Features
from afloc_jax.provenance import hash_of
from afloc_jax.settings import Json
from afloc_jax.training.assembly import Assembly
from afloc_jax.training.loop import Data
from afloc_jax.training.mesh import batch_sharding, fetch, replicated
from afloc_jax.training.processes import say
from afloc_jax.training.settings import PRECISIONS
from afloc_jax.training.step import TrainState
from data_pipelines.building.build import lock
from data_pipelines.features import LEVELS, FeatureArrays, FeatureFiles, Like
from data_pipelines.reading import RecordSource

_FORMAT = 1  # of the files; to be raised where the same settings give other features
_AT_ONCE = 8  # images on a device
_TOLERANCE = 0.05  # of the largest feature: above what another device or compiler rounds in bfloat16


def with_features(run: Assembly, data: Data, state: TrainState) -> Data:
    """The data with the features of both splits, if the config asks for them. They are computed if they are not there.

    Args:
        run: the run; `config.data.features` names the folder, or is empty.
        data: its records.
        state: a state of the run, whose backbone is frozen.

    Raises:
        UserError: the disk is too small, or several processes share a run and the features are not all there.
    """
    if not run.config.data.features:
        return data
    variables = {
        "params": fetch(state.params["image_encoder"]["backbone"]),
        "batch_stats": fetch(state.batch_stats.get("image_encoder", {}).get("backbone", {})),
    }
    names = run.config.data.train_split, run.config.data.validation_split
    training, validation = (
        _features_of(run, source, split, variables)
        for source, split in zip((data.training, data.validation), names, strict=True)
    )
    return dataclasses.replace(data, features=training, validation_features=validation)


def _features_of(run: Assembly, source: RecordSource, split: str, variables: Mapping[str, PyTree]) -> FeatureFiles:
    """The files of one split, complete."""
    made_from = _made_from(run, source, split, variables)
    folder = user_path(run.config.data.features) / f"{split}-{hash_of(made_from)[:16]}"
    like = {level: Like(str(one.dtype), one.shape[1:]) for level, one in run.features_like(1).items()}
    files = FeatureFiles(folder, len(source), like)
    if jax.process_count() > 1:
        if files.written(made_from) < len(source):
            raise UserError(
                f"config.data.features: {folder} is not complete; several processes read features that one has "
                "written: start the run with one process first, or leave config.data.features empty"
            )
        return files
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock"):
        done, encode = files.written(made_from), _encoder(run, variables)
        # Read through a mapping of its own, as the files may be made anew.
        if done and not _agree(encode(source, 0, 1), dataclasses.replace(files).rows([0])):
            say(f"{folder}: not what the image tower computes now; written again")
            done = 0
        if not done:
            check_space(folder, files.size, f"the features of {len(source):,} images")
            files.begin()
        step = _AT_ONCE * run.mesh.size
        # disable=None: no bar on anything but a terminal
        with tqdm(desc=f"features of {split}", total=len(source), initial=done, unit="image", disable=None) as bar:
            for first in range(done, len(source), step):
                count = min(step, len(source) - first)
                files.write(first, encode(source, first, count), made_from)
                bar.update(count)
    say(f"{folder}: features of {len(source):,} images, {files.size / 2**20:,.0f} MiB; {done:,} were there before")
    return files


def _made_from(run: Assembly, source: RecordSource, split: str, variables: Mapping[str, PyTree]) -> dict[str, Json]:
    """What features depend on, as JSON values."""
    image, digest = run.config.model.image, hashlib.sha256()
    for path, array in sorted(traverse_util.flatten_dict(dict(variables), sep="/").items()):
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return {
        "format": _FORMAT,
        "weights": digest.hexdigest(),
        "backbone": image.backbone,
        "structure": image.structure.plain(),
        "input_size": image.input_size,
        "mean": list(image.mean),
        "std": list(image.std),
        "precision": run.config.training.precision,
        "records": source.content_hash,
        "split": split,
        "count": len(source),
        "side": run.config.data.image_size,
    }


def _encoder(
    run: Assembly, variables: Mapping[str, PyTree]
) -> Callable[[RecordSource, int, int], dict[str, np.ndarray]]:
    """A function `encode(source, first, count)` that computes the features of records on all devices of the run."""
    image, dtype, pairs = run.config.model.image, PRECISIONS[run.config.training.precision], _AT_ONCE * run.mesh.size
    placed = jax.device_put(variables, replicated(run.mesh))

    @jax.jit
    def compute(variables: Mapping[str, PyTree], squares: Array) -> Features:
        return backbone_features(image, variables, squares, dtype)

    def encode(source: RecordSource, first: int, count: int) -> dict[str, np.ndarray]:
        squares = np.stack([source[row].image for row in range(first, first + count)])
        filled = np.concatenate([squares, np.zeros((pairs - count, *squares.shape[1:]), np.uint8)])
        found = compute(placed, jax.device_put(filled, batch_sharding(run.mesh)))
        return {level: np.asarray(array)[:count] for level, array in zip(LEVELS, found, strict=True)}

    return encode


def _agree(now: Mapping[str, np.ndarray], kept: FeatureArrays) -> bool:
    """Whether the features of a record are those that were kept, but for rounding."""
    there = dict(zip(LEVELS, kept.values(), strict=True))
    pairs = [(now[level].astype(np.float32), np.asarray(there[level], np.float32)) for level in LEVELS]
    return all(np.abs(one - other).max() <= _TOLERANCE * np.abs(one).max() for one, other in pairs)
