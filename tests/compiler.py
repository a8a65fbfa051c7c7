"""XLA's flags of the tests, which compile much and run little."""

from importlib.metadata import version

# XLA ends a process after 40 s in which the threads of its devices have not met, as on a machine with other work.
_PATIENCE = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60 --xla_cpu_collective_call_terminate_timeout_seconds=280"
)
# Without these emitters XLA compiles the training step of the tests in half the time, and in a tenth less where it does
# not split programs into parts. Later versions do not have the first flag, and end a process that gives it.
_QUICK = (
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10.")
    else ""
)


def xla_flags(devices: int) -> str:
    """XLA_FLAGS of a process with that many devices of its CPU.

    >>> xla_flags(2).split()[0]
    '--xla_force_host_platform_device_count=2'
    """
    return f"--xla_force_host_platform_device_count={devices} {_PATIENCE}{_QUICK}"
