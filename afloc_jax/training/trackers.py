"""Experiment trackers of others: Weights & Biases and MLflow, which a run writes to if `training.trackers` names them.

They get the numbers and the settings of a run, and nothing of its records: no image, text, name or log line. Where
they send them is set by their own environment variables, WANDB_MODE and MLFLOW_TRACKING_URI among them. The id of
the run lies in the working directory, so that a resumed run goes on there.
"""

import importlib.util
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from afloc_jax.errors import UsageError, UserError
from afloc_jax.extras import install
from afloc_jax.files import Path, read_json, write_json
from afloc_jax.settings import Json
from afloc_jax.training.processes import say
from afloc_jax.training.writer import Resumed, Writer

IDS = "trackers.json"  # in the working directory: the id of the run, by tracker
PROJECT = "afloc_jax"  # of both, unless their environment variables name another
_MOST_PARAMETERS, _LONGEST = 100, 500  # of one call to MLflow; letters of a parameter


class _Sink(Protocol):
    def write(self, step: int, split: str, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def check_installed(trackers: Iterable[str]) -> None:
    """Raises UsageError where the package of a tracker is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"training.trackers: {name} is not installed; {install(name)}")


def guarded(name: str, make: Callable[[Resumed], _Sink]) -> Callable[[Resumed], Writer]:
    """The row of a tracker in `metrics.WRITERS`, which a failing network or server cannot stop a run by."""
    return lambda resumed: _Guarded(name, make, resumed)


class _Guarded:
    """A tracker. At its first error the log says so, and it gets nothing more; other writers have all numbers.

    Raises:
        UserError: (from the constructor) the tracker cannot be opened.
    """

    def __init__(self, name: str, make: Callable[[Resumed], _Sink], resumed: Resumed) -> None:
        self._name = name
        try:
            self._sink: _Sink | None = make(resumed)
        except Exception as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"training.trackers: {name} cannot be opened: {told}") from error

    def _try(self, do: Callable[[_Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            do(self._sink)
        except Exception as error:
            self._sink = None
            say(
                f"{self._name} gets no more numbers of this run ({type(error).__name__}); metrics.jsonl has all of them"
            )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._try(lambda sink: sink.write(step, split, values))

    def flush(self) -> None:
        """Trackers send what they have by themselves."""

    def close(self) -> None:
        self._try(lambda sink: sink.close())


class WandbRun:
    """A run of Weights & Biases. Steps that a resumed run does again are there already, and are passed over."""

    def __init__(self, resumed: Resumed) -> None:
        import wandb

        known = _known(resumed, "wandb")
        place = str(known or uuid.uuid4().hex[:12])
        # Logs and the state of a repository may name records and people.
        private = wandb.Settings(console="off", disable_git=True, save_code=False, silent=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), id=place, name=resumed.name, group=resumed.group,
            resume="allow", dir=str(resumed.workdir), config=dict(resumed.config), settings=private,
        )  # fmt: skip
        _keep(resumed, "wandb", place)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowRun:
    """A run of MLflow. Steps that a resumed run does again stand there twice, with the same values."""

    def __init__(self, resumed: Resumed) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        known = _known(resumed, "mlflow")
        if known is not None:
            self._run = str(known)
            self._client.update_run(self._run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        created = self._client.create_run(experiment, run_name=resumed.name, tags={"group": resumed.group})
        self._run = str(created.info.run_id)
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in resumed.config.items()]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[start : start + _MOST_PARAMETERS])
        _keep(resumed, "mlflow", self._run)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        metrics = [Metric(f"{split}/{name}", value, now, step) for name, value in finite.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _ids(resumed: Resumed) -> dict[str, Json]:
    path = resumed.workdir / IDS
    content: Json = read_json(path) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def _known(resumed: Resumed, tracker: str) -> Json:
    """The id of the run that a resumed one goes on with; None for a run that starts at step 0."""
    return _ids(resumed).get(tracker) if resumed.step else None


def _keep(resumed: Resumed, tracker: str, place: str) -> None:
    write_json(Path(resumed.workdir) / IDS, {**_ids(resumed), tracker: place})
