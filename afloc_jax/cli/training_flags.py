"""The flags of the command that trains, without the libraries that read them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """A flag that `train`, `sweep` and launch.py take.

    Attributes:
        name: without hyphens.
        kind: the type of its value; a switch has none.
        about: the help text.
        default: None for a flag of text that may be left out.
        metavar: what stands for its value in the help; None: its name.
    """

    name: str
    kind: type[str] | type[int] | type[bool]
    about: str
    default: int | bool | None = None
    metavar: str | None = None


CONFIG = Flag("config", str, "Config file, or the name of a recipe such as demo; --config.KEY=VALUE changes a value.")
FLAGS = (
    Flag(
        "workdir", str, "Working directory: the folder of all files of the run. The same folder resumes.", metavar="DIR"
    ),
    Flag("sweep", str, "Sweep file, a generator of overrides, or the name of a sweep such as levels."),
    Flag("parallel", int, "Runs of a sweep at a time; each gets a part of this machine's devices.", 1),
    Flag(
        "slurm", str, "Runs of a sweep as jobs: partition=gpu,gpus_per_node=1,timeout_min=600, as submitit names them."
    ),
    Flag("dry_run", bool, "Check the config (and print the table of a sweep), then stop.", False),
    Flag("profile", str, "START:STOP: trace the steps START to STOP - 1, from 0, into WORKDIR/profile, for XProf."),
    Flag("replay", str, "A folder of WORKDIR/nonfinite: compute that step again, to find the record and the layer."),
    Flag("from_scratch", bool, "Start at step 0 where checkpoints were saved and none of them is intact.", False),
    Flag("max_restarts", int, "Start again after a crash, at most so often without a new checkpoint.", 0),
    Flag("exclude_words", str, "File of words, such as names, that a learned vocabulary must not hold."),
    Flag("distributed", bool, "Run as one of several processes, which connect first.", False),
    Flag("coordinator", str, "Host:port of process 0, if no cluster provides it."),
    Flag("processes", int, "Number of processes, if no cluster provides it."),
    Flag("process", int, "Index of this process, from 0."),
    Flag("rehearse", int, "Run as so many processes of this machine, to try out a run on several hosts.", 1),
    Flag("debug", bool, "Show tracebacks and the log lines of libraries.", False),
)
