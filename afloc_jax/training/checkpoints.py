"""Checkpoints with checksums: Orbax writes them, and a manifest of SHA-256 hashes seals them.

Orbax restores damaged files without an error and accepts any folder with a number for a name. Each committed step
therefore gets a `manifest.json` with the hashes of its files and its validation loss, and a step is restored only if
its files match its manifest. The last sealed step and the best ones by validation loss are kept.
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from afloc_jax.errors import UserError
from afloc_jax.files import Path, read_json, sha256_of, write_json
from afloc_jax.training.processes import meet, say

MANIFEST = "manifest.json"
Numbers = dict[str, Any]
"""The numbers that a checkpoint holds beside the state."""


def _files(folder: Path) -> Iterator[Path]:
    """All files under a folder. (epath has no rglob, because it would be slow on remote storage.)"""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file under `folder` except the manifest, by relative path."""
    files = sorted(path.relative_to(folder).as_posix() for path in _files(folder) if path.name != MANIFEST)
    return {name: sha256_of(folder / name) for name in files}


def damage(checkpoint: os.PathLike[str]) -> str:
    """Why the folder `checkpoint` cannot be restored; empty if every file is as it was when sealed."""
    folder = Path(checkpoint)
    if not (folder / MANIFEST).exists():
        return "was never completed"
    try:
        expected = read_json(folder / MANIFEST)["files"]
    except (UserError, KeyError, TypeError):
        return "has an unreadable manifest"
    found = _hashes(folder)
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"lacks {name}"
        if name not in expected:
            return f"holds a file that does not belong there, {name}"
        if found[name] != expected[name]:
            return f"is damaged in {name}"
    return ""


class Checkpoints:
    """The checkpoints of a run, in `folder`/<step>.

    A save runs in the background; `poll` seals it when it is done. Call `close` at the end: it waits and seals.
    """

    def __init__(self, folder: os.PathLike[str], keep_best: int) -> None:
        """Opens `folder`, which is created if needed.

        Args:
            folder: where the checkpoints of the run lie.
            keep_best: how many of the best by validation loss are kept beside the last one.
        """
        self.folder = Path(folder).absolute()  # Orbax insists on absolute paths
        self.keep_best = keep_best
        self.folder.mkdir(parents=True, exist_ok=True)
        self._unsealed: tuple[int, float | None] | None = None
        self._manager: ocp.CheckpointManager | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=None, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def steps(self) -> list[int]:
        """Steps that have a folder, sealed or not, in order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit())

    def _loss(self, step: int) -> float | None:
        try:
            loss: float | None = read_json(self.folder / str(step) / MANIFEST)["validation_loss"]
        except (UserError, KeyError, TypeError):
            return None
        return loss

    def _by_loss(self) -> list[int]:
        """The steps with a validation loss, the lowest loss first; of equal losses the earlier step first."""
        losses = [(self._loss(step), step) for step in self.steps()]
        return [step for _, step in sorted((loss, step) for loss, step in losses if loss is not None)]

    def save(self, state: PyTree[Array], step: int, progress: Numbers, validation_loss: float | None) -> None:
        """Starts to save `state` and `progress` as `step`. A step that exists already is left as it is."""
        self.seal()
        if step in self.steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._open().save(step, args=items)
        self._unsealed = (step, validation_loss)
        if jax.process_count() > 1:  # all processes must delete the same steps at the same moment
            self.seal()

    def poll(self) -> None:
        """Seals the save in the background if it has finished; returns at once otherwise."""
        if self._unsealed and self._manager and not self._manager.is_saving_in_progress():
            self.seal()

    def seal(self) -> None:
        """Waits for the save in the background, writes its manifest, and deletes the steps that are not kept."""
        if self._unsealed is None:
            return
        step, loss = self._unsealed
        manager = self._open()
        manager.wait_until_finished()
        self._unsealed = None
        folder = self.folder / str(step)
        if jax.process_index() == 0:
            write_json(folder / MANIFEST, {"step": step, "validation_loss": loss, "files": _hashes(folder)})
        meet(f"sealed {step}")
        keep = {step, *self._by_loss()[: self.keep_best]}
        for other in self.steps():
            if other not in keep:
                manager.delete(other)

    def enter_loss(self, step: int, validation_loss: float | None) -> None:
        """Writes the validation loss of a step that was saved before its validation."""
        self.seal()
        if jax.process_index() == 0:
            path = self.folder / str(step) / MANIFEST
            write_json(path, read_json(path) | {"validation_loss": validation_loss})
        meet(f"entered {step}")

    def close(self) -> None:
        """Finishes the save in the background, seals it, and closes the folder."""
        self.seal()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _discard(self, step: int) -> None:
        if jax.process_index() == 0:
            (self.folder / str(step)).rmtree()
        meet(f"discarded {step}")

    def _read(self, step: int, template: PyTree[Array]) -> tuple[PyTree[Array], Numbers]:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore())
        restored = self._open().restore(step, args=items)
        return restored["state"], restored["progress"]

    def restore_last(self, template: PyTree[Array]) -> tuple[PyTree[Array], Numbers] | None:
        """State and progress of the newest intact step, or None if there is none.

        Steps that are not intact are reported and removed, so that the run can write them again.

        Args:
            template: a state with the shapes, types and shardings to restore to.
        """
        for step in reversed(self.steps()):
            reason = damage(self.folder / str(step))
            if not reason:
                return self._read(step, template)
            say(f"checkpoint {self.folder / str(step)} {reason}: removed, going back to the one before")
            self._discard(step)
        return None

    def restore_best(self, template: PyTree[Array]) -> tuple[PyTree[Array], int]:
        """State and step of the intact checkpoint with the lowest validation loss, or of the last one if none has one.

        Raises:
            UserError: no checkpoint is intact.
        """
        best = self._by_loss()
        for step in best + [step for step in reversed(self.steps()) if step not in best]:
            reason = damage(self.folder / str(step))
            if not reason:
                return self._read(step, template)[0], step
            say(f"checkpoint {self.folder / str(step)} {reason}: taking the next best")
        raise UserError(f"{self.folder}: no intact checkpoint; delete the working directory and train again")


def save_once(folder: os.PathLike[str], state: PyTree[Array]) -> None:
    """Writes a state without a manifest to `folder`, replacing an older one, and waits until it is written."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).absolute(), state, force=True)
