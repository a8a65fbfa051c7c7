"""The command that trains and sweeps: launch.py, `afloc train` and `afloc sweep`.

Its flags, those of `training_flags`, are read by absl; --config and the overrides of its values by ml_collections.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from afloc_jax.cli.parser import underscored
from afloc_jax.cli.training_flags import CONFIG, FLAGS
from afloc_jax.compiled import keep_compiled
from afloc_jax.errors import UsageError
from afloc_jax.files import Path, bucket_path, user_path
from afloc_jax.training import program, recipes
from afloc_jax.training.allocation import keep_freed_memory
from afloc_jax.training.failures import explain, hide_tracebacks, is_lost
from afloc_jax.training.xla_flags import platform_ahead, set_flags

_DEFINE: dict[type, Callable[..., object]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    bool: flags.DEFINE_bool,
}


def parse(arguments: list[str], about: str = "") -> flags.FlagValues:
    """The flags of a command line; `arguments[0]` is the program.

    Args:
        arguments: the words of the command line.
        about: what --help says before the flags.

    Raises:
        UsageError: the command line or the config file is wrong; the message is one line.
        SystemExit: after --help.
    """
    values = flags.FlagValues()
    arguments = [arguments[0], *underscored(arguments[1:])]
    helping = any(argument in ("-h", "-help", "--help") for argument in arguments[1:])
    if not helping:
        arguments = _with_files(arguments)
    # The lock is off, so that unknown keys reach the validation of the config, which names the allowed ones.
    config_flags.DEFINE_config_file(
        CONFIG.name, None, CONFIG.about, flag_values=values, lock_config=False, accept_new_attributes=True,
        sys_argv=arguments,
    )  # fmt: skip
    for flag in FLAGS:
        bounds = {"lower_bound": flag.default} if flag.default is not None and flag.kind is int else {}
        _DEFINE[flag.kind](flag.name, flag.default, flag.about, flag_values=values, **bounds)
    if helping:
        print(f"{about.strip()}\n{values.get_help()}")
        raise SystemExit(0)
    try:
        recipes.make_importable()
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


def _with_files(arguments: list[str]) -> list[str]:
    """The arguments with the paths of recipes for their names. Missing flags and files end in one line.

    The flags library would say less, and would take "--config PATH" for two arguments.
    """
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments[1:] if argument.startswith("-"))
    if "replay" in given:
        if more := sorted({*given} - {"replay", "debug"}):
            raise UsageError(f"--replay: takes everything from the workdir of its run; leave out --{more[0]}")
        return arguments
    for name, example in (("config", "demo"), ("workdir", "runs/demo")):
        if name not in given:
            raise UsageError(f"--{name} is missing, e.g. --{name}={example}")
    found, kind = arguments[:1], ""
    for argument in arguments[1:]:
        name, equals, value = argument.partition("=")
        if kind:
            argument, kind = _file(argument, kind), ""
        elif name.lstrip("-") in recipes.KINDS and name.startswith("-"):
            kind = "" if equals else name.lstrip("-")
            argument = f"{name}={_file(value, name.lstrip('-'))}" if equals else argument
        found.append(argument)
    return found


def _file(given: str, kind: str) -> str:
    """The file of a recipe or a config file, with the text after ":" that the file itself reads."""
    path, variant = recipes.find_variant(given, kind)
    return f"{path}:{variant}" if variant else str(path)


def run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Trains or sweeps according to the flags, which `arguments` held; returns the exit status."""
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
    if "transfer" in values.config:
        return run_transfer(values, workdir)
    # Imported late: JAX takes seconds to start, and a sweep must leave the devices to its runs.
    if values.sweep:
        from afloc_jax.training.launchers import launcher_of
        from afloc_jax.training.sweep import run_sweep

        launcher = launcher_of(workdir, values.parallel, None if values.dry_run else values.slurm)
        passed_on = [f"--max_restarts={values.max_restarts}", *(["--debug"] if values.debug else [])]
        path, command = user_path(values.sweep), program.command()
        return run_sweep(path, values.config, workdir, values.dry_run, command, launcher, passed_on)
    from afloc_jax.training.processes import check_alone, join
    from afloc_jax.training.tracing import StepRange

    profile = StepRange.parse(values.profile) if values.profile is not None else None
    if values.distributed:
        join(values.coordinator, values.processes, values.process)
    else:
        check_alone(os.environ, arguments[1:])
    from afloc_jax.training.settings import RunConfig
    from afloc_jax.training.train import train

    status = train(RunConfig.from_config(values.config), workdir, values.dry_run, profile, values.from_scratch)
    if values.distributed:
        from afloc_jax.evaluation.sharing import wait_for_all
        from afloc_jax.training.processes import part

        wait_for_all("all done")  # the wait of JAX at exit would end the others after 300 s
        part()
    return status


def run_transfer(values: flags.FlagValues, workdir: Path) -> int:
    """Runs a config of transfer, such as configs/finetune_linear.py; returns the exit status."""
    for name in ("sweep", "profile", "from_scratch", "distributed"):
        if values[name].value:
            raise UsageError(f"--{name}: a transfer (config.transfer) does not have it; leave it out")
    from afloc_jax.training.finetune.run import finetune
    from afloc_jax.training.finetune.settings import FinetuneConfig

    return finetune(FinetuneConfig.from_config(values.config), workdir, values.dry_run)


def run_again(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the same command in a process of its own, and again after a crash; returns the last exit status."""
    if values.profile:
        raise UsageError("--max_restarts: a run that starts again does not trace steps twice; leave out --profile")
    from afloc_jax.training.restarts import keep_running

    command = [*program.command(), *arguments[1:], "--max_restarts=0"]
    return keep_running(command, bucket_path(values.workdir, "--workdir"), values.max_restarts)


def rehearse(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the same command in several processes of this machine; returns the exit status."""
    for name in ("sweep", "profile", "replay", "distributed", "coordinator", "processes", "process"):
        if values[name].value is not None and values[name].value is not False:  # process 0 is one as well
            raise UsageError(f"--rehearse: starts the processes of one run by itself; leave out --{name}")
    from afloc_jax.training.rehearsal import rehearse

    return rehearse([*program.command(), *arguments[1:], "--rehearse=1"], values.rehearse)


def main(arguments: list[str], about: str = "") -> int:
    """Parses the flags and runs; `about` is shown by --help. An error becomes one line and an exit status."""
    debug = "--debug" in arguments
    # Libraries log every checkpoint and build step, which would hide the progress bar and the closing lines.
    logging.set_verbosity(logging.INFO if debug else logging.ERROR)
    if not debug:
        hide_tracebacks()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if debug else "2")
    keep_compiled()
    set_flags(os.environ)
    if platform_ahead(os.environ) == "cpu":
        keep_freed_memory()
    try:
        values = parse(arguments, about)
        if values.rehearse > 1:
            return rehearse(values, arguments)
        return run_again(values, arguments) if values.max_restarts and not values.sweep else run(values, arguments)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        line = f"{program.name()}: {explain(error)}"
        status = getattr(error, "exit_status", 130 if isinstance(error, KeyboardInterrupt) else 1)
        if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
            from afloc_jax.training.leaving import leave

            if is_lost(error):
                time.sleep(1.5)  # the watch over the other processes knows which one is gone, and ends this one
            leave(status, line)
        print(line, file=sys.stderr)
        return status


def leave_with(status: int) -> NoReturn:
    """Ends the process. After a signal no thread is waited for, since one may still compile."""
    if status > 128:
        from afloc_jax.training.leaving import end

        end(status)
    sys.exit(status)
