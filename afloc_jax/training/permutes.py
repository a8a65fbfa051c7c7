"""How much of a ring's sending a compiled program hides: its collective permutes, and what runs while they travel."""

import dataclasses
import functools
import re

from afloc_jax.training.program_text import Instruction, Program

_PERMUTE = "collective-permute"
_PRODUCTS = {"dot", "convolution"}
# Products and convolutions of a library, and the Pallas kernels of losses/kernels/, which hold products.
_KERNEL = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|\$conv|triton|tpu_custom_call)')


@dataclasses.dataclass(frozen=True)
class RingPermutes:
    """The collective permutes of a program; one inside a loop counts once.

    Attributes:
        total: all of them.
        asynchronous: those with a start and a done, except where the compiler marks the start to wait for its end.
        over_products: the asynchronous ones with a matrix product between start and done: an instruction that is one,
            or a fusion, loop, branch or call that holds one.
    """

    total: int
    asynchronous: int
    over_products: int


def ring_permutes(program: Program) -> RingPermutes:
    """Counts the permutes of a program whose instructions stand in the order of the compiler's schedule."""

    @functools.cache
    def holds(name: str) -> bool:
        return any(multiplies(each) for each in program.computations.get(name, ()))

    def multiplies(each: Instruction) -> bool:
        if each.operation == "custom-call":
            return bool(_KERNEL.search(each.rest))
        return each.operation in _PRODUCTS or any(holds(name) for name in each.called)

    def starts(each: Instruction) -> bool:
        """A permute's start has a name of its own, or runs a computation that holds the permute."""
        held = (inner.operation for name in each.called for inner in program.computations.get(name, ()))
        return each.operation == f"{_PERMUTE}-start" or (each.operation == "async-start" and _PERMUTE in held)

    total = asynchronous = over_products = 0
    for instructions in program.computations.values():
        started: dict[str, int] = {}  # the name of a start, or of what passes it on -> the place of the start
        for place, each in enumerate(instructions):
            total += each.operation in (_PERMUTE, f"{_PERMUTE}-start")
            if starts(each) and '"is_sync":true' not in each.rest:
                started[each.name] = place
            elif each.operation == "async-update" and each.operand in started:
                started[each.name] = started.pop(each.operand)
            elif each.operation.endswith("-done") and each.operand in started:
                between = instructions[started.pop(each.operand) + 1 : place]
                asynchronous += 1
                over_products += any(multiplies(inner) for inner in between)
    return RingPermutes(total, asynchronous, over_products)
