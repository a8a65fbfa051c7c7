"""Kernels that a compiled GPU program starts in one run, from the text of the program, loops multiplied out."""

import re
from collections.abc import Callable

# Instructions that are, or start, one kernel, copy or collective. Others are names for parts of arrays.
_STARTED = (
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
)
_INSTRUCTION = re.compile(rf" = .*? ({'|'.join(_STARTED)}|while|call|conditional)\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) ")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_BODY = re.compile(r"body=%?([\w.\-]+)")
_CALLED = re.compile(r"(?:to_apply|calls|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


def launches(program: str, trips: Callable[[str], float]) -> float:
    """How many kernels, copies and collectives a run of the program starts.

    Args:
        program: `compiled.as_text()` of a GPU program.
        trips: the runs of a loop whose number is not known when it is compiled, from the name of what made it.
    """
    bodies: dict[str, list[str]] = {}
    entry = ""
    for block in re.split(r"\n(?=(?:%|ENTRY ))", program):
        head, *lines = block.split("\n")
        if head.endswith("{") and (name := _COMPUTATION.match(head)):
            bodies[name[2]] = lines
            entry = name[2] if name[1] else entry

    def count(name: str) -> float:
        total = 0.0
        for line in bodies[name]:
            if not (instruction := _INSTRUCTION.search(line)):
                continue
            if instruction[1] == "while":
                known, body, origin = _TRIPS.search(line), _BODY.search(line), _ORIGIN.search(line)
                assert body
                total += (float(known[1]) if known else trips(origin[1] if origin else "")) * count(body[1])
            elif instruction[1] in ("call", "conditional"):
                called = _CALLED.search(line)
                names = [each.strip(" %") for each in called[1].split(",")] if called else []
                total += max((count(each) for each in names if each in bodies), default=0)
            else:
                total += 1
        return total

    return count(entry)
