"""The training loop: steps, validation, logging and checkpoints."""

import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from signal import Signals
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from afloc_jax.files import Path, write_json
from afloc_jax.training import program
from afloc_jax.training.alarms import Alarms
from afloc_jax.training.assembly import Assembly
from afloc_jax.training.checkpoints import Checkpoints, save_once
from afloc_jax.training.failures import NonFiniteError, StopSignal
from afloc_jax.training.flops import step_flops
from afloc_jax.training.mesh import SharedNumber, pad_batch, place_batch
from afloc_jax.training.metrics import Writers
from afloc_jax.training.optimizer import Plateau
from afloc_jax.training.peak_rates import peak_rate
from afloc_jax.training.processes import passed, say
from afloc_jax.training.progress import Progress
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.step import LossMetrics, StepMetrics, TrainState
from afloc_jax.training.tracing import StepRange, Trace
from afloc_jax.training.workdir import NONFINITE
from data_pipelines.batches import Batch, BatchSource, training_batches, validation_batches
from data_pipelines.features import FeatureFiles
from data_pipelines.reading import RecordSource
from data_pipelines.vocabulary import VocabularyAccount

NAMED_RECORDS = 8  # how many records an error names; the file in nonfinite/ has all of them


@dataclasses.dataclass(frozen=True)
class Data:
    """The records for training and validation, the tokenizer of their text, and how it was learned, if it was now."""

    training: RecordSource
    validation: RecordSource
    tokenizer: Tokenizer
    vocabulary: VocabularyAccount | None = None
    features: FeatureFiles | None = None  # of the images to train on, and of those to validate
    validation_features: FeatureFiles | None = None

    def batches_to_train(self, config: RunConfig) -> BatchSource:
        """This process's part of the batches of a run, by step."""
        return training_batches(
            self.training,
            config.data,
            self.tokenizer,
            batch_size=config.training.batch_size,
            seed=config.seed,
            hard_negatives=config.loss.hard_negatives,
            features=self.features,
            **_process(),
        )

    def batches_to_validate(self, config: RunConfig, step: int) -> BatchSource:
        """This process's part of the validation batches after `step` steps."""
        return validation_batches(
            self.validation,
            config.data,
            self.tokenizer,
            batch_size=config.training.batch_size,
            seed=config.seed,
            step=step,
            features=self.validation_features,
            **_process(),
        )


@dataclasses.dataclass
class Loop:
    """A training run. `run` updates `state` and `progress`, which afterwards are those of the last step.

    `profile` names steps to trace.
    """

    assembly: Assembly
    data: Data
    workdir: Path
    checkpoints: Checkpoints
    writers: Writers
    state: TrainState
    progress: Progress
    profile: StepRange | None = None

    def __post_init__(self) -> None:
        self._config = self.assembly.config
        self._signal = SharedNumber(self.assembly.mesh)
        self._sealed = SharedNumber(self.assembly.mesh)  # of negative steps, whose maximum is the earliest step
        # Metrics of dispatched steps. They are read one step late, so that the device never waits for the loop.
        self._unchecked: deque[tuple[int, StepMetrics, NDArray[np.int64]]] = deque()
        self._flops = step_flops(self._config, self.data.training[0].image.shape[0])
        self._peak = peak_rate(self.assembly.mesh.devices.flat)
        self._alarms = Alarms(self._config.loss, self._config.training.batch_size)
        self._clock = _Clock()
        self._trace = Trace(self.profile, self.workdir)
        self._next: _Placed | None = None  # the batch that lies on the devices already
        self._bar = tqdm(
            total=self.assembly.total_steps,
            initial=self.progress.step,
            unit="step",
            disable=None if jax.process_index() == 0 else True,  # None: on anything but a terminal
        )

    def run(self, stop: StopSignal) -> bool:
        """Runs until the last step, early stopping or a signal. In each case a checkpoint is saved.

        Returns:
            Whether a signal ended the run, the same on all processes. `stop.received` is the signal.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the state before that step is in `workdir/nonfinite`.
        """
        progress = self.progress
        batches = self.data.batches_to_train(self._config).iterate(progress.step)
        with self._bar, self._trace:
            if self._is_validation_step() and progress.validated_step < progress.step:
                # The run resumes after a signal that interrupted this validation, whose step was saved before.
                if not self._validate(stop):
                    return True
                self.checkpoints.enter_loss(progress.step, progress.last_loss)
            while progress.step < self.assembly.total_steps and not progress.stopped_early:
                self._step(batches)
                passed()
                stop.hold()  # before the first step there is nothing to save
                self.checkpoints.poll(-self._sealed(-self.checkpoints.sealed()))
                with self._clock.apart():
                    validated = self._is_validation_step() and self._validate(stop)
                stopping = self._stops(stop)
                every = self._config.training.checkpoint_every
                if validated or stopping or (every and progress.step % every == 0):
                    with self._clock.apart():
                        self._save(progress.last_loss if validated else None)
                if stopping:
                    return True
        self._check(keep=0)
        # With several processes the others have not seen the signal.
        return jax.process_count() == 1 and stop.received is not None

    def _step(self, batches: Iterator[Batch]) -> None:
        """Dispatches a training step, moves the next batch to the devices, and reads the metrics of the step before."""
        step = self.progress.step
        if self._trace.turns_at(step):
            with self._clock.apart():
                self._check(keep=0)
                self._trace.turn(step)
        batch = self._next or self._fetch(batches)
        with self._trace.enter_step(step):
            self.state, metrics = self.assembly.train_step(self.state, batch.arrays)
        self._unchecked.append((step, metrics, batch.rows))
        self.progress.step += 1
        self._next = self._fetch(batches) if self.progress.step < self.assembly.total_steps else None
        self._check(keep=1)
        self._clock.count(self._flops.total(self._config.training.batch_size, batch.words, batch.sentences))
        self._bar.update()
        every = self._config.training.log_every
        if self.progress.step % every == 0 or self.progress.step == self.assembly.total_steps:
            self._log(metrics)

    def _fetch(self, batches: Iterator[Batch]) -> "_Placed":
        with self._clock.waiting():
            batch = next(batches)
        words, sentences = (jax.process_count() * int(batch[key].sum()) for key in ("word_count", "sentence_count"))
        return _Placed(place_batch(batch, self.assembly.mesh), np.asarray(batch["index"]), words, sentences)

    def _is_validation_step(self) -> bool:
        every = self._config.training.validate_every or self.assembly.steps_per_epoch
        return self.progress.step % every == 0 or self.progress.step == self.assembly.total_steps

    def _stops(self, stop: StopSignal) -> bool:
        """Whether to stop now. A signal to any process stops all of them, at the same step."""
        passed()
        heard = self._signal(stop.received or 0)
        if heard:
            stop.received = Signals(heard)
        return bool(heard)

    # Numbers

    def _log(self, metrics: StepMetrics) -> None:
        self._check(keep=0)
        values = metrics.named()
        timing = self._clock.read(self._config.training.batch_size)
        if self._peak is not None and "flops_per_second" in timing:
            timing["mfu"] = timing["flops_per_second"] / self._peak
        self.progress.seconds += timing.pop("seconds")
        since = {"extended_from": float(start)} if (start := self._extended_from()) else {}
        logged = values | since | self._alarms.interval() | timing | _device_memory()
        self.writers.write(self.progress.step, "train", logged)
        shown = {"loss": f"{values['loss']:.3f}"}
        if "input_wait_fraction" in timing:
            shown["input_wait"] = f"{timing['input_wait_fraction']:.0%}"
        self._bar.set_postfix(shown, refresh=False)
        if self._bar.disable:  # a log file gets a line instead of a bar that redraws itself
            say(self._line(values["loss"], timing))

    def _extended_from(self) -> int:
        """The step from which the extended run went on that the step that was done belongs to; 0 for none."""
        starts = [extension.from_step for extension in self.assembly.extensions]
        return max((start for start in starts if start < self.progress.step), default=0)

    def _line(self, loss: float, timing: dict[str, float]) -> str:
        step, total = self.progress.step, self.assembly.total_steps
        line = f"step {step} of {total}, loss {loss:.3f}"
        if "step_seconds" in timing:
            left = timedelta(seconds=round((total - step) * timing["step_seconds"]))
            line += f", {timing['examples_per_second']:.1f} examples/s, {left} left"
        if "mfu" in timing:
            line += f", {timing['mfu']:.1%} of peak"
        return line

    def _validate(self, stop: StopSignal) -> bool:
        """Computes the validation loss and updates early stopping and plateau. False when a signal interrupts it."""
        self._check(keep=0)
        totals: dict[str, float] = {}
        count, mesh = 0, self.assembly.mesh
        group = self._config.loss.contrast_group or 1
        for given in self.data.batches_to_validate(self._config, self.progress.step):
            if self._stops(stop):
                return False
            # A split with fewer records than a batch may not divide by devices or groups: pad it with empty pairs.
            batch = pad_batch(given, math.lcm(len(mesh.local_devices), group // jax.process_count() or 1))
            state, placed = self.state, place_batch(batch, mesh)
            # A compilation may take minutes, which a signal should not wait for. Several processes must wait together.
            step = functools.partial(self.assembly.validation_step, state.params, state.batch_stats, placed)
            metrics = step() if jax.process_count() > 1 else stop.unless_stopped(step)
            if metrics is None:
                return False
            values = metrics.named()
            if not math.isfinite(values["loss"]):
                self._stop_not_finite("validation after step", self.progress.step, metrics, given["index"])
            for key, value in values.items():
                totals[key] = totals.get(key, 0.0) + value
            count += 1
        means = {key: total / count for key, total in totals.items()}
        self.writers.write(self.progress.step, "validation", means)
        self.progress.enter(means["loss"], self._config.training.early_stopping)
        if self._config.optimizer.schedule == "plateau":
            self._lower_learning_rate(means["loss"])
        return True

    def _lower_learning_rate(self, loss: float) -> None:
        progress = self.progress
        plateau = Plateau(self._config.optimizer.decay, progress.plateau_best, progress.plateau_waited)
        scale = self.state.learning_rate_scale * plateau.factor(loss)
        progress.plateau_best, progress.plateau_waited = plateau.best, plateau.waited
        self.state = dataclasses.replace(self.state, learning_rate_scale=scale)

    # Files

    def _save(self, validation_loss: float | None) -> None:
        self._check(keep=0)
        self.writers.flush()
        progress = dataclasses.asdict(self.progress)
        self.checkpoints.save(self.state.to_saved(), self.progress.step, progress, validation_loss)

    def _check(self, keep: int) -> None:
        """Reads the metrics of all dispatched steps but the last `keep`; raises NonFiniteError if one is not finite."""
        while len(self._unchecked) > keep:
            step, metrics, index = self._unchecked.popleft()
            metrics = jax.device_get(metrics)  # all its numbers at once
            if not metrics.finite:
                self._stop_not_finite("step", step, metrics, index)
            for warning in self._alarms.see(step, metrics.named()):
                say(warning)

    def _stop_not_finite(self, what: str, step: int, metrics: LossMetrics, index: NDArray[np.int64]) -> None:
        """Saves the state and the names of the records of the batch (all processes'), then raises NonFiniteError."""
        values, trained = metrics.named(), isinstance(metrics, StepMetrics)
        source = self.data.training if trained else self.data.validation
        folder = self.workdir / NONFINITE / f"{what.split()[0]}_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        if jax.process_count() > 1:
            index = multihost_utils.process_allgather(index).reshape(-1)
        records = [str(source[int(row)].id) for row in index if row >= 0]
        save_once(folder / "state", dataclasses.replace(self.state, all_finite=jnp.ones((), bool)).to_saved())
        if jax.process_index() == 0:
            told = {key: repr(value) for key, value in values.items()}
            write_json(folder / "batch.json", {"step": step, "metrics": told, "records": records})
        listed = ", ".join(records[:NAMED_RECORDS]) + (", ..." if len(records) > NAMED_RECORDS else "")
        norm = f", gradient norm {values['grad_norm']!r}; stopped without applying it" if trained else ""
        raise NonFiniteError(
            f"{what} {step}: loss {values['loss']!r}{norm}. Records of the batch: {listed}. The state before it and "
            f"the names of all records are in {folder}. Lower config.optimizer.lr or look at these records; "
            f"{program.name()} --replay={folder} finds the layer and the record"
        )


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def _device_memory() -> dict[str, float]:
    """The most bytes in use so far on a device of this process; empty where the device does not count them (CPU)."""
    found = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    counted = [most for most in found if most is not None]
    return {"device_peak_bytes": max(counted)} if counted else {}


class _Placed(NamedTuple):
    """A batch on the devices, and which records it is made of.

    `words` and `sentences` are those of the global batch, if the other processes have as many as this one.
    """

    arrays: dict[str, jax.Array]
    rows: NDArray[np.int64]  # of the source
    words: int
    sentences: int


class _Clock:
    """The time of each log interval and the share of it spent waiting for data.

    The first step, which compiles, and work inside `apart` are left out.
    """

    def __init__(self) -> None:
        self._restart()
        self._steps = -1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context for waiting for a batch: its time counts as waiting."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A context for validation and saving: its time does not count."""
        began = time.perf_counter()
        yield
        self._apart += time.perf_counter() - began

    def count(self, flops: float) -> None:
        """Counts a dispatched step and its work."""
        self._steps += 1
        self._flops += flops
        if self._steps == 0:
            self._restart()

    def _restart(self) -> None:
        self._steps, self._flops, self._waited, self._apart, self._began = 0, 0.0, 0.0, 0.0, time.perf_counter()

    def read(self, batch_size: int) -> dict[str, float]:
        """The rates of the interval, which ends here; only `seconds` where no step has been timed yet."""
        seconds, steps = time.perf_counter() - self._began - self._apart, self._steps
        rates = {
            "examples_per_second": steps * batch_size / seconds,
            "input_wait_fraction": self._waited / seconds,
            "step_seconds": seconds / max(steps, 1),
            "flops_per_second": self._flops / seconds,
        }
        self._restart()
        return {"seconds": seconds, **(rates if steps > 0 else {})}
