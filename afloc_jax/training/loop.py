"""The loop of steps: what happens when, and what a run remembers beside its state."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from afloc_jax.training.checkpoints import Checkpoints, save_once
from afloc_jax.training.config import write_json
from afloc_jax.training.failures import NonFiniteError, StopSignal
from afloc_jax.training.mesh import SharedNumber, pad_batch, place_batch
from afloc_jax.training.metrics import MetricsWriter
from afloc_jax.training.optimizer import Plateau
from afloc_jax.training.step import TrainState
from data_pipelines.batches import Batch, training_batches, validation_batches

NAMED_RECORDS = 8  # in a one-line message; the file in nonfinite/ has all of them


@dataclasses.dataclass
class Progress:
    """What a checkpoint remembers beside the state; JSON numbers only."""

    step: int = 0
    best_loss: float | None = None  # lowest validation loss
    best_step: int = 0
    last_loss: float | None = None  # latest validation loss
    validated_step: int = 0  # of the latest whole validation
    waited: int = 0  # validations since the lowest
    stopped_early: bool = False
    plateau_best: float | None = None
    plateau_waited: int = 0
    seconds: float = 0.0  # of training over all resumptions, without compilation


@dataclasses.dataclass
class Loop:
    """A training run in motion. After `run`, `state` and `progress` are where it ended."""

    config: ConfigDict
    workdir: Path
    source: Any
    validation: Any
    tokenizer: Any
    mesh: Mesh
    checkpoints: Checkpoints
    writer: MetricsWriter
    train_step: Callable
    validation_step: Callable
    steps_per_epoch: int
    total_steps: int

    def run(self, state: TrainState, progress: Progress, stop: StopSignal) -> bool:
        """Steps until the last one, early stopping or a signal; each end saves a checkpoint.

        Returns:
            Whether a signal ended it, the same on all processes; `stop.received` says which.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the state before that step is in `workdir/nonfinite`.
        """
        self.state, self.progress = state, progress
        self._signal = SharedNumber(self.mesh)
        batches = self._batches(progress.step)
        settings = self.config.training
        # Outcomes of dispatched steps, looked at one step late so that the device never waits for the loop.
        self._unchecked: deque[tuple[int, Any, np.ndarray]] = deque()
        clock = _Clock()
        bar = tqdm(total=self.total_steps, initial=progress.step, unit="step", disable=None if self._leads else True)
        with bar:
            if self._is_validation(progress.step) and progress.validated_step < progress.step:
                # A signal cut this validation short, after its step was saved.
                if not self._validate(stop):
                    return True
                self.checkpoints.enter_loss(progress.step, progress.last_loss)
            while progress.step < self.total_steps and not progress.stopped_early:
                with clock.waiting():
                    batch = next(batches)
                self.state, metrics = self.train_step(self.state, place_batch(batch, self.mesh))
                self._unchecked.append((progress.step, metrics, np.asarray(batch["index"])))
                progress.step += 1
                self._check(keep=1)
                clock.count()
                bar.update()
                if progress.step % settings.log_every == 0 or progress.step == self.total_steps:
                    self._log(metrics, clock, bar)
                self.checkpoints.poll()
                with clock.apart():
                    validated = self._is_validation(progress.step) and self._validate(stop)
                stopping = self._stops(stop)
                every = settings.checkpoint_every
                if validated or stopping or (every and progress.step % every == 0):
                    with clock.apart():
                        self._save(progress.last_loss if validated else None)
                if stopping:
                    return True
        self._check(keep=0)
        return jax.process_count() == 1 and stop.received is not None  # of several, the others would not know

    @property
    def _leads(self) -> bool:
        return jax.process_index() == 0

    def _batches(self, start: int) -> Iterator[Batch]:
        config = self.config
        size, seed = config.training.batch_size, config.seed
        batches = training_batches(self.source, config.data, self.tokenizer, batch_size=size, seed=seed, **_process())
        return batches.iterate(start)

    def _validation_batches(self) -> Iterator[Batch]:
        size = self.config.training.batch_size
        return iter(
            validation_batches(self.validation, self.config.data, self.tokenizer, batch_size=size, **_process())
        )

    def _is_validation(self, step: int) -> bool:
        every = self.config.training.validate_every or self.steps_per_epoch
        return step % every == 0 or step == self.total_steps

    def _stops(self, stop: StopSignal) -> bool:
        """Whether to stop now. A signal to one of several processes is one to all, at the same step."""
        heard = self._signal(stop.received or 0)
        if heard:
            stop.received = Signals(heard)
        return bool(heard)

    # Numbers

    def _log(self, metrics: dict[str, jax.Array], clock: "_Clock", bar: tqdm) -> None:
        self._check(keep=0)
        values = {key: float(value) for key, value in metrics.items() if key != "finite"}
        timing = clock.read(self.config.training.batch_size)
        self.progress.seconds += timing.pop("seconds")
        self.writer.write(self.progress.step, "train", {**values, **timing})
        told = {"loss": f"{values['loss']:.3f}"}
        if "input_wait_fraction" in timing:
            told["input_wait"] = f"{timing['input_wait_fraction']:.0%}"
        bar.set_postfix(told, refresh=False)

    def _validate(self, stop: StopSignal) -> bool:
        """Validation loss, early stopping, plateau. False when a signal interrupts it."""
        self._check(keep=0)
        progress, count = self.progress, 0
        totals: dict[str, float] = {}
        group = self.config.loss.contrast_group or 1
        for whole in self._validation_batches():
            if self._stops(stop):
                return False
            # A split with fewer records than a batch need not divide by devices or groups: pad with empty captions.
            batch = pad_batch(whole, math.lcm(len(self.mesh.local_devices), group // jax.process_count() or 1))
            losses = self.validation_step(self.state.params, self.state.batch_stats, place_batch(batch, self.mesh))
            values = {key: float(value) for key, value in losses.items()}
            if not math.isfinite(values["loss"]):
                self._stop_not_finite(progress.step, values, whole["index"], self.validation, "validation after step")
            for key, value in values.items():
                totals[key] = totals.get(key, 0.0) + value
            count += 1
        means = {key: total / count for key, total in totals.items()}
        self.writer.write(progress.step, "validation", means)
        progress.last_loss, progress.validated_step = means["loss"], progress.step
        if progress.best_loss is None or means["loss"] < progress.best_loss:
            progress.best_loss, progress.best_step, progress.waited = means["loss"], progress.step, 0
        else:
            progress.waited += 1
        patience = self.config.training.early_stopping
        progress.stopped_early = bool(patience) and progress.waited >= patience
        if self.config.optimizer.schedule == "plateau":
            self._lower_rate(means["loss"])
        return True

    def _lower_rate(self, loss: float) -> None:
        progress = self.progress
        plateau = Plateau(self.config.optimizer.decay, progress.plateau_best, progress.plateau_waited)
        factor = plateau.factor(loss)
        progress.plateau_best, progress.plateau_waited = plateau.best, plateau.waited
        self.state = dataclasses.replace(self.state, rate_scale=self.state.rate_scale * factor)

    # Files

    def _save(self, validation_loss: float | None) -> None:
        self._check(keep=0)
        self.checkpoints.save(self.state, self.progress.step, dataclasses.asdict(self.progress), validation_loss)

    def _check(self, keep: int) -> None:
        """Look at the outcomes of all dispatched steps but the last `keep`; stop the run at one that is not finite."""
        while len(self._unchecked) > keep:
            step, metrics, index = self._unchecked.popleft()
            if not bool(metrics["finite"]):
                values = {key: float(value) for key, value in metrics.items() if key != "finite"}
                self._stop_not_finite(step, values, index, self.source, "step")

    def _stop_not_finite(self, step: int, values: dict[str, float], index: np.ndarray, source: Any, what: str) -> None:
        """Save the state and the names of the batch's records, of all processes, and raise NonFiniteError."""
        folder = self.workdir / "nonfinite" / f"{what.split()[0]}_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        if jax.process_count() > 1:
            index = multihost_utils.process_allgather(index).reshape(-1)
        records = [str(source[int(row)].id) for row in index if row >= 0]
        save_once(folder / "state", dataclasses.replace(self.state, healthy=jnp.ones((), bool)))
        if self._leads:
            told = {key: repr(value) for key, value in values.items()}
            write_json(folder / "batch.json", {"step": step, "metrics": told, "records": records})
        listed = ", ".join(records[:NAMED_RECORDS]) + (", ..." if len(records) > NAMED_RECORDS else "")
        norm = f", gradient norm {values['grad_norm']!r}; stopped without applying it" if "grad_norm" in values else ""
        raise NonFiniteError(
            f"{what} {step}: loss {values['loss']!r}{norm}. Records of the batch: {listed}. State before it and all "
            f"records: {folder}. Lower config.optimizer.lr or look at these records"
        )


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


class _Clock:
    """Time per log interval and the share of it spent waiting for data.

    Left out are the first step, which compiles, and what happens inside `apart`.
    """

    def __init__(self) -> None:
        self._steps, self._waited, self._apart, self._began = -1, 0.0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for a batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around work that is no training: validation, saving."""
        began = time.perf_counter()
        yield
        self._apart += time.perf_counter() - began

    def count(self) -> None:
        """A step was dispatched."""
        self._steps += 1
        if self._steps == 0:
            self._restart()

    def _restart(self) -> None:
        self._steps, self._waited, self._apart, self._began = 0, 0.0, 0.0, time.perf_counter()

    def read(self, batch_size: int) -> dict[str, float]:
        """Rates of the interval, which ends here; nothing but `seconds` before a step was timed."""
        seconds, steps = time.perf_counter() - self._began - self._apart, self._steps
        rates = {"examples_per_second": steps * batch_size / seconds, "input_wait_fraction": self._waited / seconds}
        self._restart()
        return {"seconds": seconds, **(rates if steps > 0 else {})}
