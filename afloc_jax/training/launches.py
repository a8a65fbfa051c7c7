"""Kernels that a compiled GPU program starts in one run, from the text of the program, loops multiplied out."""

import re
from collections.abc import Callable

from afloc_jax.training.program_text import Program

# Instructions that are, or start, one kernel, copy or collective. Others are names for parts of arrays.
_STARTED = {
    "fusion",
    "custom-call",
    "copy",
    "copy-start",
    "dynamic-slice",
    "dynamic-update-slice",
    "sort",
    "dot",
    "convolution",
    "reduce",
    "broadcast",
    "concatenate",
    "iota",
    "pad",
    "scatter",
    "gather",
    "transpose",
    "rng-bit-generator",
    "all-reduce-start",
    "all-reduce",
    "all-gather-start",
    "all-gather",
    "reduce-scatter",
    "collective-permute-start",
    "collective-permute",
}
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


def launches(program: Program, trips: Callable[[str], float]) -> float:
    """How many kernels, copies and collectives a run of a GPU program starts.

    Args:
        program: the compiled program.
        trips: the runs of a loop whose number is not known when it is compiled, from the name of what made it.
    """

    def count(name: str) -> float:
        total = 0.0
        for each in program.computations.get(name, ()):
            if each.operation == "while":
                known = _TRIPS.search(each.rest)
                total += (float(known[1]) if known else trips(each.origin)) * sum(map(count, each.called))
            elif each.operation in ("call", "conditional"):
                total += max(map(count, each.called), default=0)
            else:
                total += each.operation in _STARTED
        return total

    return count(program.entry)
