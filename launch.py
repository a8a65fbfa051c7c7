"""Train AFLoc, or sweep over settings.

    python launch.py --config=configs/demo.py --workdir=runs/demo [--config.optimizer.lr=1e-4 ...]
    python launch.py --config=configs/afloc.py --sweep=configs/sweeps/levels.py --workdir=runs/levels [--dry_run]

The same command again resumes; a finished run says so. Exit status: 0 finished, 1 the work failed, 2 a wrong call,
143 or 130 stopped by SIGTERM or Ctrl-C after saving (the same command goes on from there).
"""

import os
import sys
import traceback
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from afloc_jax.errors import UsageError, UserError

FLAGS = flags.FLAGS
# New attributes are let through here so that the validation of the whole config can name what is allowed instead.
config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/demo.py.", lock_config=False, accept_new_attributes=True
)
flags.DEFINE_string("workdir", None, "Folder for everything the run writes; the same folder resumes.")
flags.DEFINE_string("sweep", None, "Generator of overrides, e.g. configs/sweeps/levels.py: one run per override.")
flags.DEFINE_bool("dry_run", False, "Check the config (and print the table of a sweep), then stop.")
flags.DEFINE_bool("distributed", False, "One of several processes: call jax.distributed.initialize first.")
flags.DEFINE_string("coordinator", None, "With --distributed: host:port of process 0 (clusters find it themselves).")
flags.DEFINE_integer("processes", None, "With --distributed: number of processes.")
flags.DEFINE_integer("process", None, "With --distributed: number of this process, from 0.")
flags.DEFINE_bool("debug", False, "Show tracebacks and library logs.")


def parse(arguments: list[str]) -> None:
    """Fill FLAGS from the command line. Raises UsageError with one line for anything that does not parse."""
    if any(argument in ("-h", "--help") for argument in arguments[1:]):
        print(__doc__.strip() + "\n\n" + FLAGS.get_help().split("absl.app")[0], end="")
        raise SystemExit(0)
    given = [argument.split("=", 1)[0].lstrip("-") for argument in arguments[1:]]
    for name, example in (("config", "configs/demo.py"), ("workdir", "runs/demo")):
        if name not in given:
            raise UsageError(f"--{name} is missing, e.g. --{name}={example}")
    for position, argument in enumerate(arguments):
        if argument.lstrip("-").split("=", 1)[0] == "config":
            path = argument.split("=", 1)[1] if "=" in argument else "".join(arguments[position + 1 : position + 2])
            if not Path(path.split(":", 1)[0]).is_file():
                raise UsageError(f"--config={path}: no such file; configs/demo.py and configs/afloc.py are there")
    try:
        rest = FLAGS(arguments)
    except Exception as error:  # a config file runs arbitrary code: whatever it raises is a wrong call
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UsageError(f"{type(error).__name__}: {lines[-1] if lines else 'unreadable command line'}") from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; flags are written --name=value")


def run() -> int:
    """Do what the flags say; returns the exit status."""
    # Imported after the flags are known to be right: JAX takes seconds to start.
    workdir = Path(FLAGS.workdir)
    if FLAGS.sweep:
        from afloc_jax.training.sweep import run_sweep

        return run_sweep(Path(FLAGS.sweep), FLAGS.config, workdir, FLAGS.dry_run, Path(__file__).resolve(), FLAGS.debug)
    if FLAGS.distributed:
        import jax

        jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    from afloc_jax.training.train import train

    return train(FLAGS.config, workdir, FLAGS.dry_run)


def main(arguments: list[str]) -> int:
    """Parse, run, and turn failures into one line and an exit status."""
    debug = "--debug" in arguments
    # Libraries log every checkpoint and build step; the run speaks through its progress bar and closing lines.
    logging.set_verbosity(logging.INFO if debug else logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if debug else "2")
    try:
        parse(arguments)
        return run()
    except Exception as error:
        if debug:
            traceback.print_exc()
        from afloc_jax.training.failures import explain

        print(f"launch.py: {explain(error)}", file=sys.stderr)
        return error.exit_status if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
