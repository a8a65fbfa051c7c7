"""A finished run that goes on, with more steps or epochs than it had.

`extended.json` in the working directory names, for each time this was done, the step from which the run went on, how
the learning rate was laid out, and the length that it was given. It is written before config.json has that length. An
entry whose length config.json never got is therefore of a start that was killed, and does not count.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from afloc_jax.errors import UsageError
from afloc_jax.files import Path, read_json, write_json
from afloc_jax.training.optimizer import Extension, LearningRate
from afloc_jax.training.settings import RunConfig, TrainingSettings
from afloc_jax.training.workdir import CONFIG, EXTENDED, FINISHED, read_finished

_LEAST = 1e-3  # of optimizer.lr: a rate below it teaches nothing in the time that training takes


@dataclasses.dataclass(frozen=True)
class Entry(Extension):
    """An extension, and the `training.steps` and `training.epochs` from there on."""

    steps: int = 0
    epochs: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The extensions of a run, in order. `begins`: the last one is not noted in the working directory yet."""

    entries: tuple[Entry, ...] = ()
    begins: bool = False

    def check(self, folder: Path, total_steps: int, rate: LearningRate, settings_rate: float) -> None:
        """Refuses an extension that adds no steps, or in which nothing would be learned.

        Args:
            folder: the working directory.
            total_steps: the steps of the whole run.
            rate: its learning rate.
            settings_rate: `optimizer.lr`.
        """
        if not self.begins:
            return
        last = self.entries[-1]
        if total_steps <= last.from_step:
            raise UsageError(
                f"{folder} has finished {last.from_step} steps and would have {total_steps}: steps and epochs may only "
                "grow; choose another --workdir for a shorter run"
            )
        if last.how == "hold" and (held := float(rate(jnp.asarray(last.from_step)))) < _LEAST * settings_rate:
            raise UsageError(
                f"training.extend = 'hold': would hold the learning rate of the last step, {held:.2g}, where "
                f"optimizer.lr is {settings_rate:g}; use 'reschedule'"
            )

    def told(self, total_steps: int) -> str:
        """What was done, for the log, run.json and the model card; empty where the run was never extended."""
        if not self.entries:
            return ""
        ends = [*(entry.from_step for entry in self.entries[1:]), total_steps]
        how = {"reschedule": "the learning rate laid out anew", "hold": "the learning rate of the last step held"}
        parts = [
            f"from step {entry.from_step:,} to {end:,}, {how[entry.how]} ({entry.how})"
            for entry, end in zip(self.entries, ends, strict=True)
        ]
        return f"{'; '.join(parts)}. This is not the same as one run of {total_steps:,} steps"


def plan(config: RunConfig, folder: Path) -> Plan:
    """The extensions of the run in `folder` with this config, which `workdir.check_workdir` has let pass.

    It writes nothing.

    Raises:
        UsageError: the run is to be extended, but has stopped early or was never finished.
    """
    noted = _read(folder)
    training = config.training
    before = _lengths(folder)
    if before is None or before == (training.steps, training.epochs):
        return Plan(_until(noted, (training.steps, training.epochs)))
    known = _until(noted, before)
    begun = [entry for entry in noted[len(known) :] if (entry.steps, entry.epochs) == (training.steps, training.epochs)]
    finished = read_finished(folder)
    if finished is not None and finished.stopped_early:
        raise UsageError(
            f"{folder} stopped early, after {finished.steps} steps, because the validation loss fell no more; more "
            "steps would not be reached. Choose another --workdir"
        )
    if finished is None and not begun:
        raise UsageError(
            f"{folder} is not finished: only a finished run can be extended. Run it to its end with the steps and "
            "epochs that it has"
        )
    from_step = finished.steps if finished is not None else begun[0].from_step
    return Plan((*known, Entry(from_step, training.extend, training.steps, training.epochs)), begins=True)


def begin(folder: Path, planned: Plan) -> None:
    """Notes an extension that begins; from there on the run is not finished. config.json is to be written next."""
    write_json(folder / EXTENDED, [dataclasses.asdict(entry) for entry in planned.entries])
    (folder / FINISHED).unlink(missing_ok=True)


def _read(folder: Path) -> list[Entry]:
    path = folder / EXTENDED
    return [Entry(**entry) for entry in read_json(path, "restore it")] if path.exists() else []


def _lengths(folder: Path) -> tuple[int, int] | None:
    """The steps and epochs that the run in a working directory has; None for a new one."""
    path = folder / CONFIG
    if not path.exists():
        return None
    settings = TrainingSettings()
    training = read_json(path).get("training", {})
    return training.get("steps", settings.steps), training.get("epochs", settings.epochs)


def _until(noted: Sequence[Entry], lengths: tuple[int, int]) -> tuple[Entry, ...]:
    """The entries up to the one of these lengths; none for the lengths that the run had first."""
    for number, entry in enumerate(noted, start=1):
        if (entry.steps, entry.epochs) == lengths:
            return tuple(noted[:number])
    return ()
