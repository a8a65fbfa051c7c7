"""The text of a compiled program (XLA's HLO), read into computations and their instructions."""

import dataclasses
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
# Groups: name, result, operation, rest of the line. A result is an array, or a tuple of arrays in parentheses.
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|(?:branch|called)_computations|(?:true|false)_computation)=\{?((?:%?[\w.-]+(?:, )?)+)"
)
_OPERAND = re.compile(r"%([\w.-]+)")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without the leading %.
        result: the type and layout of its array, or of a tuple of arrays in parentheses.
        operation: such as "fusion" or "collective-permute-start".
        rest: the text behind the operation's opening parenthesis: operands and attributes.
    """

    name: str
    result: str
    operation: str
    rest: str

    @property
    def operand(self) -> str:
        """The name of the first operand, or ""."""
        found = _OPERAND.search(self.rest)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        """The names of all operands, whose list has no parenthesis in it."""
        return _OPERAND.findall(self.rest.partition(")")[0])

    @property
    def origin(self) -> str:
        """The operation of the traced program that it comes from, a parameter's name for an argument, or ""."""
        found = _ORIGIN.search(self.rest)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it runs: a loop's body (not its condition), branches, a fusion's or a call's."""
        return [name.strip(" %") for names in _CALLED.findall(self.rest) for name in names.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each a list of instructions in the order of the compiler's schedule; `entry` is run."""

    computations: dict[str, list[Instruction]]
    entry: str


def read(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            lines = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        elif found := _INSTRUCTION.match(line):
            lines.append(Instruction(*found.groups()))
    return Program(computations, entry)
