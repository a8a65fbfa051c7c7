"""The runs of a sweep as jobs of Slurm, through submitit. Needs requirements-slurm.txt."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from afloc_jax.buckets import is_bucket
from afloc_jax.errors import UsageError
from afloc_jax.extras import install
from afloc_jax.files import Path

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

CLUSTERS = ("slurm", "local")  # of the option `cluster`; "local" starts processes here, to try things out
_MOST = 1000  # jobs at a time, if --parallel does not say; Slurm itself makes those wait that have no room
_GRACE = 300  # seconds before its time limit at which a job is told to save


def options(given: str) -> dict[str, int | str]:
    """The options of --slurm, such as "partition=gpu,gpus_per_node=1,timeout_min=600".

    Raises:
        UsageError: an option is not written as NAME=VALUE, or the cluster is unknown.
    """
    found: dict[str, int | str] = {}
    for part in filter(None, given.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--slurm={given}: {part!r}: write NAME=VALUE, with commas in between")
        found[name] = int(value) if value.isdecimal() else value
    if found.get("cluster", CLUSTERS[0]) not in CLUSTERS:
        raise UsageError(f"--slurm: cluster = {found['cluster']!r}: must be one of {', '.join(CLUSTERS)}")
    return found


class Slurm:
    """Starts every run as a job. The folder `slurm` beside the runs has submitit's files and what the jobs say.

    At its time limit, or where it is preempted, a job saves and is queued again (as often as submitit's
    `slurm_max_num_timeout`, 3, allows). A job has one task: a run takes the devices of one node.
    """

    def __init__(self, workdir: Path, given: Mapping[str, int | str], most: int) -> None:
        """Raises UsageError where submitit or Slurm is absent, or does not know an option."""
        if is_bucket(workdir):
            raise UsageError(f"--slurm: {workdir} is in a bucket; a folder that all nodes see is needed for its files")
        try:
            import submitit
        except ImportError:
            raise UsageError(f"--slurm: submitit is not installed; {install('slurm')}") from None
        self.most = most if most > 1 else _MOST
        cluster = str(given.get("cluster", CLUSTERS[0]))
        parameters: dict[str, Any] = {name: value for name, value in given.items() if name != "cluster"}
        parameters.setdefault("timeout_min", 24 * 60)
        try:
            self._executor = submitit.AutoExecutor(str(workdir / "slurm"), cluster=cluster)
            if cluster == "slurm":
                parameters = {"slurm_signal_delay_s": _GRACE, **parameters}
            self._executor.update_parameters(**parameters)
        except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
            raise UsageError(f"--slurm: {' '.join(str(error).split())}") from error

    def start(self, command: Sequence[str], log: Path) -> "_Submitted":
        return _Submitted(self._executor.submit(Work(list(command), str(log))))


class _Submitted:
    """A job, from the moment that it is queued."""

    def __init__(self, job: "Job[int]") -> None:
        self._job = job

    def status(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception:  # cancelled, out of time or memory, or the node was lost: submitit's files say which
            return 1

    def stop(self) -> None:
        """Cancels the job: Slurm sends SIGTERM to all that it started, which saves. A queued job never starts."""
        self._job.cancel(check=False)


class Work:
    """What a job does: it runs a command, and queues itself again where Slurm ends it before the command ends."""

    def __init__(self, command: Sequence[str], log: str) -> None:
        self.command, self.log = command, log
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """The exit status of the command, whose output is appended to the log."""
        with open(self.log, "ab") as file:
            self._child = subprocess.Popen(self.command, stdout=file, stderr=subprocess.STDOUT)
            signal.signal(signal.SIGTERM, self._pass_on)
            code = self._child.wait()
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Tells the command of a SIGTERM, after which it saves and ends."""
        if self._child is not None:
            self._child.send_signal(number)

    def checkpoint(self) -> "DelayedSubmission":
        """Called by submitit at the time limit and on preemption: the command saves, and the job is queued again."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.terminate()
            self._child.wait()
        return DelayedSubmission(Work(self.command, self.log))


def environment_of_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """What this process and its jobs need in their environment, before submitit is imported.

    Jobs find this package also where it runs from a clone that is not installed. submitit leaves logging as it is: it
    would close the handlers of others.
    """
    home = str(Path(__file__).parent.parent.parent)
    paths = [home, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "SUBMITIT_LOG_LEVEL": "NOCONFIG"}
