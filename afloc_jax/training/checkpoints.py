"""Checkpoints with checksums: Orbax writes them, and a manifest of hashes seals them.

Orbax restores damaged files without an error and accepts any folder with a number for a name. Each committed step is
therefore synced to the disk and gets a `manifest.json` with the hashes of its files and its validation loss. A step is
restored only if its files match its manifest; one that does not is moved to <folder>.damaged, because Orbax deletes
what it does not know. The last two sealed steps are kept, so that a damaged one leaves another, and the best ones by
validation loss.

The file <folder>.sealed.json beside the folder holds the last step that was ever sealed. It tells a run that was never
saved, which may start anew, from one whose checkpoints are gone.
"""

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, absolute, check_space, hashes, move_folder, read_json, sync_folder, write_json
from afloc_jax.seals import FORMAT_VERSION, NewerFormat, check_version, difference
from afloc_jax.training.processes import meet, say

MANIFEST = "manifest.json"
Numbers = dict[str, Any]
"""The numbers that a checkpoint holds beside the state."""


def damage(checkpoint: os.PathLike[str]) -> str:
    """Why the folder `checkpoint` cannot be restored; empty if every file is as it was when sealed.

    Raises:
        NewerFormat: a later version of this program wrote it.
    """
    folder = Path(checkpoint)
    if not _is_sealed(folder):
        return "was never completed"
    try:
        manifest = read_json(folder / MANIFEST)
        expected = {name: str(hash) for name, hash in manifest["files"].items()}
        check_version(folder / MANIFEST, manifest.get("format_version"))
    except NewerFormat:
        raise
    except (UserError, KeyError, TypeError, AttributeError):
        return "has an unreadable manifest"
    return difference(folder, expected, skipped=(MANIFEST,))


def last_sealed(folder: Path) -> int:
    """The newest step in the folder of a run's checkpoints that has a manifest; 0 where there is none."""
    return max((step for step in steps_in(folder) if _is_sealed(folder / str(step))), default=0)


def steps_in(folder: Path) -> list[int]:
    """Steps that have a folder, sealed or not, in order."""
    if not folder.is_dir():  # a bucket has no empty folders
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def ever_sealed(folder: Path) -> int:
    """The last step that was ever sealed in the folder of a run's checkpoints; 0 if none was."""
    try:
        noted = int(read_json(_beside(folder, "sealed.json"))["step"])
    except (UserError, KeyError, TypeError, ValueError):
        noted = 0  # absent, as in runs of earlier versions, or removed
    damaged = _beside(folder, "damaged")
    aside = [path.name.partition(".")[0] for path in damaged.iterdir()] if damaged.is_dir() else []
    return max(noted, last_sealed(folder), *(int(name) for name in aside if name.isdigit()))


def is_unfinished(folder: Path, step: int, ever: int) -> bool:
    """Whether a step was never sealed: it is being saved, or is the rest of a killed save. `ever` is `ever_sealed`."""
    return step > ever and not _is_sealed(folder / str(step))


def _beside(folder: Path, ending: str) -> Path:
    return folder.parent / f"{folder.name}.{ending}"


def _is_sealed(step_folder: Path) -> bool:
    return bool((step_folder / MANIFEST).exists())


class Checkpoints:
    """The checkpoints of a run, in `folder`/<step>.

    A save copies the state into the memory of the host; a thread then writes and seals the copy, while training goes
    on. A save waits only for the one before. Call `close` at the end: it waits until the last one is committed.
    """

    def __init__(
        self, folder: os.PathLike[str], keep_best: int, check_owner: Callable[[], None] = lambda: None
    ) -> None:
        """Opens `folder`, which is created if needed.

        Args:
            folder: where the checkpoints of the run lie.
            keep_best: how many of the best by validation loss are kept beside the last two.
            check_owner: raises an error if this process may not write any more; called before each save.
        """
        self.folder = absolute(folder)  # Orbax insists on absolute paths
        self.keep_best = keep_best
        self._check_owner = check_owner
        self.folder.mkdir(parents=True, exist_ok=True)
        self._saving: tuple[int, Future[float]] | None = None  # the step, and the seconds until it was sealed
        self._committed = 0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._manager: ocp.CheckpointManager | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=None, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def steps(self) -> list[int]:
        """Steps that have a folder, sealed or not, in order."""
        return steps_in(self.folder)

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
        """Starts to save `state` and `progress` as `step`. A step that exists already is left as it is.

        Raises:
            UserError: the disk has too little free space, or another process has the folder.
        """
        self.commit()
        if step in self.steps():
            return
        self._check_owner()
        check_space(self.folder, _bytes_of(state), f"the checkpoint of step {step}")
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        say(f"checkpoint of step {step}: saving in the background")
        began = time.perf_counter()
        self._open().save(step, args=items)
        self._saving = step, self._thread.submit(self._seal, step, validation_loss, began)

    def _seal(self, step: int, validation_loss: float | None, began: float) -> float:
        """Waits for Orbax and writes the manifest. Returns the seconds since `began`. It runs in the thread."""
        self._open().wait_until_finished()
        folder = self.folder / str(step)
        if jax.process_index() == 0:
            sync_folder(folder)
            files = hashes(folder)
            manifest = {"format_version": FORMAT_VERSION, "step": step, "validation_loss": validation_loss}
            write_json(folder / MANIFEST, manifest | {"files": files})
            write_json(_beside(self.folder, "sealed.json"), {"step": step, "time": time.time()})
        return time.perf_counter() - began

    def sealed(self) -> int:
        """The last step that this process has sealed; 0 if there is none. Raises the error of a save that failed."""
        if self._saving and self._saving[1].done():
            self._saving[1].result()
            return self._saving[0]
        return self._committed

    def poll(self, sealed: int) -> None:
        """Commits the save in the background if all processes have sealed it; returns at once otherwise.

        Args:
            sealed: the smallest `sealed()` of all processes, or an earlier value of it. It must be the same on all,
                because they delete the same steps at the same moment.
        """
        if self._saving and self._saving[0] == sealed:
            self.commit()

    def commit(self) -> None:
        """Waits until the save in the background is sealed, and deletes the steps that are not kept."""
        if self._saving is None:
            return
        step, saving = self._saving
        self._saving = None
        seconds = saving.result()
        self._committed = step
        meet(f"sealed {step}")
        say(f"checkpoint of step {step}: committed after {seconds:.1f} s")
        last_two = [other for other in self.steps() if other <= step and _is_sealed(self.folder / str(other))][-2:]
        keep = {*last_two, *self._by_loss()[: self.keep_best]}
        for other in self.steps():
            if other not in keep:
                self._open().delete(other)

    def enter_loss(self, step: int, validation_loss: float | None) -> None:
        """Writes the validation loss of a step that was saved before its validation."""
        self.commit()
        if jax.process_index() == 0:
            path = self.folder / str(step) / MANIFEST
            write_json(path, read_json(path) | {"validation_loss": validation_loss})
        meet(f"entered {step}")

    def close(self) -> None:
        """Waits until the save in the background is committed, and closes the folder."""
        self.commit()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _set_aside(self, step: int, reason: str, ever: int) -> None:
        """Moves a damaged step to <folder>.damaged. One that was never sealed, the rest of a kill, is deleted."""
        meet(f"judged {step}")  # all processes have read it
        place = self.folder / str(step)
        unfinished = is_unfinished(self.folder, step, ever)
        damaged = _beside(self.folder, "damaged")
        target = damaged / _free_name(damaged, str(step))
        if jax.process_index() == 0:
            if unfinished:
                place.rmtree()
            else:
                move_folder(place, target)
        done = "removed" if unfinished else f"moved to {target}"
        say(f"checkpoint {place} {reason}: {done}, going back to the one before")
        meet(f"set aside {step}")

    def _read(self, step: int, template: PyTree[Array]) -> tuple[PyTree[Array], Numbers]:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore())
        restored = self._open().restore(step, args=items)
        return restored["state"], restored["progress"]

    def restore_last(self, template: PyTree[Array], from_scratch: bool = False) -> tuple[PyTree[Array], Numbers] | None:
        """State and progress of the newest intact step, or None if no step was ever sealed.

        Steps that are not intact are reported and moved aside, so that the run can write them again.

        Args:
            template: a state with the shapes, types and shardings to restore to.
            from_scratch: return None also where steps were sealed but none is intact.

        Raises:
            UsageError: `from_scratch` is on and a step is intact.
            UserError: steps were sealed, none is intact, and `from_scratch` is off.
        """
        ever = ever_sealed(self.folder)
        for step in reversed(self.steps()):
            reason = damage(self.folder / str(step))
            if reason:
                self._set_aside(step, reason, ever)
            elif from_scratch:
                raise UsageError(
                    f"--from_scratch: {self.folder} holds an intact checkpoint of step {step}; leave the flag out to "
                    "go on from it, or choose another --workdir"
                )
            else:
                return self._read(step, template)
        if ever and not from_scratch:
            raise UserError(
                f"{self.folder}: step {ever} was saved, but no intact checkpoint is left; put one back (a copy of "
                f"yours, or from {_beside(self.folder, 'damaged').name}), or give --from_scratch to train anew from "
                "step 0"
            )
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


def _bytes_of(state: PyTree[Array]) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _free_name(folder: Path, name: str) -> str:
    """The name, or the first of name.1, name.2, ... that does not exist in the folder."""
    names = (name if number == 0 else f"{name}.{number}" for number in itertools.count())
    return next(free for free in names if not (folder / free).exists())


def save_once(folder: os.PathLike[str], state: PyTree[Array]) -> None:
    """Writes a state without a manifest to `folder`, replacing an older one, and waits until it is written."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(absolute(folder), state, force=True)


def read_once(folder: os.PathLike[str], template: PyTree[Array]) -> PyTree[Array]:
    """The state that `save_once` wrote, with the shapes, types and shardings of the template."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(absolute(folder), template)
