"""A reader of pickles that executes no code of theirs.

A pickle is a program: it may name any function and have it called. Here a pickle can only build plain Python values and
tensors. Every other name becomes an inert `Stub`, which keeps its arguments. No module is imported for a file and no
function that it names is called, so a malicious file gives stubs or an error.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol, TypeAlias

from afloc_jax.errors import UserError

Value: TypeAlias = (
    "bool | int | float | complex | str | bytes | list[Value] | tuple[Value, ...] | dict[Value, Value] | "
    "set[Value] | frozenset[Value] | Stub | Unchanging | None"
)
"""The values that a pickle can contain."""

# Bounds of one pickle. A checkpoint of 1,000 tensors, with two moments each, has 80,000 instructions and 0.2 MB.
MOST_INSTRUCTIONS, LARGEST_PICKLE = 300_000, 1 << 24
_MOST_NAMES = 1000  # functions and classes
_MOST_ARGUMENTS = 1_000_000  # of all calls, with what is in them
_LONGEST_KEY, _LARGEST_KEY = 8, 1024  # entries of a tuple, bits of a number

_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


class DamagedPickle(UserError):
    """A pickle that is incomplete or malformed."""


class Readable(Protocol):
    """The methods of a file that the instructions of a pickle are read from."""

    def read(self, count: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


class _Sealed(type):
    """A metaclass of classes that a pickle cannot change: its BUILD may set attributes of any object on its stack."""

    def __setattr__(cls, name: str, value: Value) -> None:
        raise pickle.UnpicklingError(f"a pickle may not change {cls.__name__}")


class Unchanging:
    """The base of our own values on a pickle's stack. BUILD calls `__setstate__`, so it cannot set attributes."""

    __slots__ = ()

    def __setstate__(self, state: Value) -> None:
        raise pickle.UnpicklingError(f"a pickle may not change a {type(self).__name__}")


class Stub(metaclass=_Sealed):
    """A stand-in for an object of a class that is not allowed. No code of that class was run.

    Attributes:
        path: "module.Class" as the pickle names it.
        arguments: the arguments of the constructor.
        state: the state that would have been set; None if there is none.
        entries: the items that would have been added to a list, or the pairs to a dict.
    """

    path = ""

    def __new__(cls, *arguments: Value, **keywords: Value) -> "Stub":
        made = super().__new__(cls)
        made.__dict__.update(arguments=(*arguments, *keywords.items()), state=None, entries=[])
        return made

    def __init__(self, *arguments: Value, **keywords: Value):
        pass

    def __call__(self, *arguments: Value, **keywords: Value) -> "Stub":
        return Stub(*arguments, **keywords)

    def __setstate__(self, state: Value) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Value, value: Value) -> None:
        self.__dict__["entries"].append((key, value))

    def append(self, item: Value) -> None:
        self.__dict__["entries"].append(item)

    def extend(self, items: Iterable[Value]) -> None:
        self.__dict__["entries"].extend(items)

    def __reduce__(self) -> NoReturn:
        raise pickle.PicklingError("a stub stands for something unknown and cannot be pickled")


class Ordered(dict[Value, Value], metaclass=_Sealed):
    """A stand-in for OrderedDict. Attributes that a pickle sets on it (PyTorch's `_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Value) -> None:
        pass


class _Function(Unchanging):
    """One of our functions, called under the name that the pickle uses."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Value]):
        self._call = call

    def __call__(self, *arguments: Value) -> Value:
        return self._call(*arguments)


Named: TypeAlias = "type | Unchanging"  # an object that a pickle refers to by name

_ALLOWED: dict[str, Named] = {
    "collections.OrderedDict": Ordered,
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
}


def load(
    data: bytes,
    functions: dict[str, Callable[..., Value]],
    classes: dict[str, Unchanging],
    persistent: Callable[[Value], Value],
) -> Value:
    """The value of one pickle, of any protocol.

    Args:
        data: the bytes of the pickle and nothing else.
        functions: "module.name" -> our function that is called in its place. Its arguments are those of the file, so it
            must check them.
        classes: "module.name" -> our value, for names that the file mentions without calling them.
        persistent: returns the object of a persistent id (PyTorch's storages).

    Raises:
        DamagedPickle: the pickle is cut short or malformed.
        UserError: raised by `functions` or `persistent`.
    """
    check(io.BytesIO(data))
    known: dict[str, Named] = {**_ALLOWED, **classes, **{name: _Function(call) for name, call in functions.items()}}
    try:
        # latin1 decodes any byte string of Python 2, which the oldest files contain.
        value: Value = _Unpickler(io.BytesIO(data), known, persistent).load()
        return value
    except UserError:
        raise
    except Exception as error:  # a malformed pickle can raise almost any exception
        raise DamagedPickle(f"its pickle is malformed ({type(error).__name__}: {str(error)[:100]})") from None


def check(file: Readable) -> None:
    """Reads the instructions of one pickle without executing them, and leaves `file` after the last one.

    The file chooses the numbers of memo slots, and the reader allocates all slots up to the highest. A number beyond
    the length of the pickle is refused, because it could exhaust the memory; so are too many instructions and bytes.

    Raises:
        DamagedPickle: the pickle is cut short, or has an unknown instruction or such a number.
    """
    start = file.tell()
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]  # it calls these methods alone
            if opcode.name in _MEMO and int(argument or 0) > (position or 0):
                raise DamagedPickle(f"its pickle numbers a memo slot {argument}, beyond its own length")
            if count >= MOST_INSTRUCTIONS or (position or 0) - start > LARGEST_PICKLE:
                raise DamagedPickle(
                    f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions or {LARGEST_PICKLE:,} bytes, "
                    "more than weights need"
                )
    except UserError:
        raise
    except Exception as error:  # genops raises ValueError, but its argument readers raise struct.error and others
        raise DamagedPickle(f"its pickle is cut short or malformed ({str(error)[:100]})") from None


class _Unpickler(pickle._Unpickler):
    """Executes the instructions of a pickle, as Python's own unpickler does, within bounds.

    Instructions of a pickle can use one value many times. A tuple that holds the same tuple twice, thirty times over,
    has a hash that takes minutes, and a long tuple that is the argument of many calls is copied each time. Keys are
    therefore small and flat, and all arguments of calls together bounded.
    """

    stack: list[Value]  # of Python's unpickler; what follows the last mark, if an instruction takes all that follows it

    def __init__(self, file: io.BytesIO, known: dict[str, Named], persistent: Callable[[Value], Value]):
        super().__init__(file, encoding="latin1")
        self._known, self._persistent = known, persistent
        self._stubs: dict[str, _Sealed] = {}
        self._count = 0

    def find_class(self, module: str, name: str) -> Named:
        path = f"{module}.{name}"
        if path in self._known:
            return self._known[path]
        if path not in self._stubs:
            if len(self._stubs) >= _MOST_NAMES:
                raise DamagedPickle(f"its pickle names more than {_MOST_NAMES:,} functions and classes")
            self._stubs[path] = _Sealed("Stub", (Stub,), {"path": path})
        return self._stubs[path]

    def persistent_load(self, pid: Value) -> Value:
        return self._persistent(pid)

    def check_arguments(self, called: Value, arguments: Value) -> None:
        """Counts the arguments of a call, and what is in them, which the called may copy or hash."""
        values = _tuple(arguments)
        many = [value for value in values if isinstance(value, list | tuple | dict | set | frozenset)]
        self._count += len(values) + sum(len(value) for value in many)
        if self._count > _MOST_ARGUMENTS:
            raise DamagedPickle(f"its pickle has calls with more than {_MOST_ARGUMENTS:,} arguments")
        if called in (None, set, frozenset):
            _check_keys(entry for value in many for entry in value)
        if called in (None, Ordered):
            pairs = (entry for value in many for entry in value if isinstance(entry, list | tuple))
            _check_keys(pair[0] for pair in pairs if pair)


# What is checked on the stack before Python's own instruction uses it.
_GUARDS: dict[bytes, Callable[[_Unpickler, list[Value]], None]] = {
    pickle.REDUCE: lambda unpickler, stack: unpickler.check_arguments(stack[-2], stack[-1]),
    pickle.NEWOBJ: lambda unpickler, stack: unpickler.check_arguments(stack[-2], stack[-1]),
    pickle.NEWOBJ_EX: lambda unpickler, stack: unpickler.check_arguments(None, (*_tuple(stack[-2]), stack[-1])),
    pickle.OBJ: lambda unpickler, stack: unpickler.check_arguments(None, tuple(stack[1:])),
    pickle.INST: lambda unpickler, stack: unpickler.check_arguments(None, tuple(stack)),
    pickle.SETITEM: lambda _, stack: _check_key(stack[-2]),
    pickle.SETITEMS: lambda _, stack: _check_keys(stack[::2]),
    pickle.DICT: lambda _, stack: _check_keys(stack[::2]),
    pickle.ADDITEMS: lambda _, stack: _check_keys(stack),
    pickle.FROZENSET: lambda _, stack: _check_keys(stack),
}


def _guarded(instruction: bytes) -> Callable[[pickle.Unpickler], None]:
    guard, execute = _GUARDS[instruction], pickle._Unpickler.dispatch[instruction[0]]

    def run(unpickler: pickle.Unpickler) -> None:
        assert isinstance(unpickler, _Unpickler)
        guard(unpickler, unpickler.stack)
        execute(unpickler)

    return run


_Unpickler.dispatch = {**pickle._Unpickler.dispatch, **{name[0]: _guarded(name) for name in _GUARDS}}


def _tuple(arguments: Value) -> tuple[Value, ...]:
    if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
        raise pickle.UnpicklingError("arguments that are no tuple")
    return arguments


def _check_keys(keys: Iterable[Value]) -> None:
    for key in keys:
        _check_key(key)


def _check_key(key: Value, depth: int = 2) -> None:
    """Refuses a key whose hash takes long: one that is nested, or a very large number."""
    if isinstance(key, tuple):
        if len(key) > _LONGEST_KEY or not depth:
            raise DamagedPickle("its pickle has a key that is a long or nested tuple")
        for part in key:
            _check_key(part, depth - 1)
    elif isinstance(key, int) and key.bit_length() > _LARGEST_KEY:
        raise DamagedPickle("its pickle has a very large number as a key")
