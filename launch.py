"""Train AFLoc, or sweep over settings.

    python launch.py --config=configs/demo.py --workdir=runs/demo [--config.optimizer.lr=1e-4 ...]
    python launch.py --config=configs/afloc.py --sweep=configs/sweeps/levels.py --workdir=runs/levels [--dry_run]
    python launch.py --replay=runs/demo/nonfinite/step_7

The same command again resumes a run; a finished run says so. The exit status is 0 for a finished run, 1 for failed
work, 2 for a wrong call, 3 for a loss that is not finite, and 143 or 130 if SIGTERM or Ctrl-C stopped the run, after it
saved a checkpoint. With --max_restarts the command starts itself again after a crash.
"""

import functools
import os
import sys
import time
import traceback
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from afloc_jax.compiled import keep_compiled
from afloc_jax.errors import UsageError
from afloc_jax.files import bucket_path
from afloc_jax.training.failures import explain, hide_tracebacks, is_lost
from afloc_jax.training.xla_flags import set_flags

_LAUNCHER = Path(__file__).resolve()


def parse(arguments: list[str]) -> flags.FlagValues:
    """The flags of a command line; `arguments[0]` is the program.

    Raises:
        UsageError: the command line or the config file is wrong; the message is one line.
        SystemExit: after --help.
    """
    values = flags.FlagValues()
    arguments = [_with_underscores(argument) for argument in arguments]
    # The lock is off, so that unknown keys reach the validation of the config, which names the allowed ones.
    config_flags.DEFINE_config_file(
        "config", None, "Config file, e.g. configs/demo.py; --config.KEY=VALUE changes a value of it.",
        flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=arguments,
    )  # fmt: skip
    text, number, switch = (
        functools.partial(define, flag_values=values)
        for define in (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool)
    )
    text("workdir", None, "Working directory: the folder of all files of the run. The same folder resumes.")
    text("sweep", None, "Sweep file, a generator of overrides, e.g. configs/sweeps/levels.py.")
    switch("dry_run", False, "Check the config (and print the table of a sweep), then stop.")
    text("profile", None, "START:STOP: trace the steps START to STOP - 1, from 0, into WORKDIR/profile, for XProf.")
    text("replay", None, "A folder of WORKDIR/nonfinite: compute that step again, to find the record and the layer.")
    switch("from_scratch", False, "Start at step 0 where checkpoints were saved and none of them is intact any more.")
    number("max_restarts", 0, "Start again after a crash, at most so often without a new checkpoint.", lower_bound=0)
    text("exclude_words", None, "File of words, such as names, that a learned vocabulary must not hold.")
    switch("distributed", False, "Run as one of several processes, which connect first.")
    text("coordinator", None, "Host:port of process 0, if no cluster provides it.")
    number("processes", None, "Number of processes, if no cluster provides it.")
    number("process", None, "Index of this process, from 0.")
    switch("debug", False, "Show tracebacks and the log lines of libraries.")

    if any(argument in ("-h", "-help", "--help") for argument in arguments[1:]):
        print(f"{__doc__.strip()}\n{values.get_help()}")
        raise SystemExit(0)
    _check_paths(arguments)
    try:
        rest = values(arguments)
    except (Exception, SystemExit) as error:  # a config file may raise anything; in each case the call was wrong
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[-1] if lines else "unreadable command line"
        kind = "" if isinstance(error, flags.Error) else f"{type(error).__name__}: "
        raise UsageError(f"{kind}{message}") from error
    if values.replay is None and not isinstance(values.config, ConfigDict):
        raise UsageError(f"--config: get_config of that file gives a {type(values.config).__name__}, not a ConfigDict")
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return values


def _with_underscores(argument: str) -> str:
    """An argument with "_" for "-" in the name of its flag. Values, and keys of the config, are unchanged."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config"):
        return argument
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _check_paths(arguments: list[str]) -> None:
    """Checks for missing flags and files, with clearer errors than those of the flags library."""
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments[1:] if argument.startswith("-"))
    if "replay" in given:
        if more := sorted({*given} - {"replay", "debug"}):
            raise UsageError(f"--replay: takes everything from the workdir of its run; leave out --{more[0]}")
        return
    for name, example in (("config", "configs/demo.py"), ("workdir", "runs/demo")):
        if name not in given:
            raise UsageError(f"--{name} is missing, e.g. --{name}={example}")
    for name, example in (("config", "configs/demo.py"), ("sweep", "configs/sweeps/levels.py")):
        # The library checks "--config PATH", with a space.
        if given.get(name) and not Path(given[name].split(":", 1)[0]).is_file():
            raise UsageError(f"--{name}={given[name]}: no such file; {example} is one")


def run(values: flags.FlagValues) -> int:
    """Trains or sweeps according to the flags; returns the exit status."""
    if values.replay is not None:
        from afloc_jax.training.replay import replay

        replay(bucket_path(values.replay, "--replay"))
        return 0
    workdir = bucket_path(values.workdir, "--workdir")
    if values.sweep and values.profile:
        raise UsageError(f"--profile={values.profile}: traces one run, not a sweep; leave out one of the two")
    if values.sweep and values.from_scratch:
        raise UsageError("--from_scratch: is for one run, not for a sweep; give it with the config of the run")
    if values.exclude_words is not None:
        from afloc_jax.training.config import override

        override(values.config, "data.exclude_words", values.exclude_words)
    # Imported late: JAX takes seconds to start, and a sweep must leave the devices to its runs.
    if values.sweep:
        from afloc_jax.training.sweep import run_sweep

        passed_on = [f"--max_restarts={values.max_restarts}", *(["--debug"] if values.debug else [])]
        return run_sweep(Path(values.sweep), values.config, workdir, values.dry_run, _LAUNCHER, passed_on)
    from afloc_jax.training.processes import check_alone, join
    from afloc_jax.training.tracing import StepRange

    profile = StepRange.parse(values.profile) if values.profile is not None else None
    if values.distributed:
        join(values.coordinator, values.processes, values.process)
    else:
        check_alone(os.environ)
    from afloc_jax.training.settings import RunConfig
    from afloc_jax.training.train import train

    status = train(RunConfig.from_config(values.config), workdir, values.dry_run, profile, values.from_scratch)
    if values.distributed:
        from afloc_jax.evaluation.sharing import wait_for_all
        from afloc_jax.training.processes import part

        wait_for_all("all done")  # the wait of JAX at exit would end the others after 300 s
        part()
    return status


def run_again(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the same command in a process of its own, and again after a crash; returns the last exit status."""
    if values.profile:
        raise UsageError("--max_restarts: a run that starts again does not trace steps twice; leave out --profile")
    from afloc_jax.training.restarts import keep_running

    command = [sys.executable, str(_LAUNCHER), *arguments[1:], "--max_restarts=0"]
    return keep_running(command, bucket_path(values.workdir, "--workdir"), values.max_restarts)


def main(arguments: list[str]) -> int:
    """Parses the flags and runs. An error becomes one line and an exit status."""
    debug = "--debug" in arguments
    # Libraries log every checkpoint and build step, which would hide the progress bar and the closing lines.
    logging.set_verbosity(logging.INFO if debug else logging.ERROR)
    if not debug:
        hide_tracebacks()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if debug else "2")
    keep_compiled()
    set_flags(os.environ)
    try:
        values = parse(arguments)
        return run_again(values, arguments) if values.max_restarts and not values.sweep else run(values)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        line = f"launch.py: {explain(error)}"
        status = getattr(error, "exit_status", 130 if isinstance(error, KeyboardInterrupt) else 1)
        if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
            from afloc_jax.training.leaving import leave

            if is_lost(error):
                time.sleep(1.5)  # the watch over the other processes knows which one is gone, and ends this one
            leave(status, line)
        print(line, file=sys.stderr)
        return status


if __name__ == "__main__":
    exit_status = main(sys.argv)
    if exit_status > 128:  # a thread may still compile
        from afloc_jax.training.leaving import end

        end(exit_status)
    sys.exit(exit_status)
