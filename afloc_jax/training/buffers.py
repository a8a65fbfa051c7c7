"""The largest arrays of a compiled program."""

import dataclasses
import math
import re
from collections import Counter

from afloc_jax.settings import Json
from afloc_jax.training.program_text import Program

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
# Results of these operations are no new arrays: they refer to existing ones.
_NO_BUFFER = {"bitcast", "conditional", "get-tuple-element", "optimization-barrier", "tuple", "while"}
_ORIGINS = 3  # how many origins are listed for each kind of array


@dataclasses.dataclass
class _Kind:
    """Arrays of one type and shape."""

    size: int
    places: int = 0
    origins: Counter[str] = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """All arrays of one type and one shape in a compiled program.

    Attributes:
        dtype: the type as HLO names it, such as "bf16".
        shape: the shape on one device.
        bytes: the memory of one such array, with the padding of a TPU's tiles.
        places: the number of instructions whose result is such an array. An instruction inside a loop counts once, and
            an update in place counts as well, so arrays of several places may share memory or exist at different times.
        origins: the most frequent operations of the traced program that these arrays come from; the parameter's name
            for an argument.
    """

    dtype: str
    shape: list[int]
    bytes: int
    places: int
    origins: list[str]

    def to_json(self) -> dict[str, Json]:
        """The buffer as `afloc compile --json` prints it."""
        return {
            "dtype": self.dtype,
            "shape": [*self.shape],
            "bytes": self.bytes,
            "places": self.places,
            "from": [*self.origins],
        }


def largest_buffers(program: Program, most: int = 10) -> list[Buffer]:
    """The `most` largest kinds of arrays in a compiled program, largest first.

    Values inside a fusion, and arrays in another memory space than the device's main memory, are left out.
    """
    kinds: dict[tuple[str, str], _Kind] = {}
    inside = _fusions(program)
    for name, instructions in program.computations.items():
        for each in () if name in inside else instructions:
            operation = each.operation
            argument = operation == "parameter" and name != program.entry
            if operation in _NO_BUFFER or operation.endswith("-done") or argument:
                continue
            found = _ARRAY.finditer(each.result)
            arrays = {(array[1], array[2]): array for array in found if "S(" not in (array[3] or "")}
            for key, array in arrays.items():
                kind = kinds.setdefault(key, _Kind(0))
                kind.size = max(kind.size, _bytes(*array.groups()))
                kind.places += 1
                kind.origins[each.origin or operation] += 1
    largest = sorted(kinds.items(), key=lambda item: -item[1].size)[:most]
    return [
        Buffer(dtype, _sizes(shape), kind.size, kind.places, [name for name, _ in kind.origins.most_common(_ORIGINS)])
        for (dtype, shape), kind in largest
    ]


def memory_bytes(result: str, everywhere: bool = False) -> int:
    """The bytes of a result's arrays in the device's main memory, or `everywhere`."""
    arrays = _ARRAY.finditer(result)
    return sum(_bytes(*array.groups()) for array in arrays if everywhere or "S(" not in (array[3] or ""))


def _fusions(program: Program) -> set[str]:
    """The names of fused computations: only their last result is written to memory."""
    instructions = (each for computation in program.computations.values() for each in computation)
    return {name for each in instructions if each.operation == "fusion" for name in each.called}


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _bytes(dtype: str, shape: str, layout: str | None) -> int:
    """The bytes of an array in memory. Its minor dimensions, in the order of the layout, are padded to whole tiles."""
    bits = re.search(r"\d+", dtype)  # "bf16", "f8e4m3fn", "s32"; "pred" has none
    order, _, rest = (layout or "").partition(":")
    sizes = _sizes(shape)
    minor_first = [sizes[axis] for axis in _sizes(order)] or sizes[::-1]
    tile = _TILE.search(rest)
    for place, least in enumerate(reversed(_sizes(tile[1])) if tile else ()):
        minor_first += [1] * (place == len(minor_first))
        minor_first[place] = -(-minor_first[place] // least) * least
    return math.prod(minor_first) * (int(bits[0]) if bits else 8) // 8
