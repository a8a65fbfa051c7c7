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
    stubs: dict[str, _Sealed] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Named:
            path = f"{module}.{name}"
            if path in known:
                return known[path]
            if path not in stubs:
                stubs[path] = _Sealed("Stub", (Stub,), {"path": path})
            return stubs[path]

        def persistent_load(self, identity: Value) -> Value:
            return persistent(identity)

    try:
        # latin1 decodes any byte string of Python 2, which the oldest files contain.
        value: Value = Unpickler(io.BytesIO(data), encoding="latin1").load()
        return value
    except UserError:
        raise
    except Exception as error:  # a malformed pickle can raise almost any exception
        raise DamagedPickle(f"its pickle is malformed ({type(error).__name__}: {error})") from None


def check(file: Readable) -> None:
    """Reads the instructions of one pickle without executing them, and leaves `file` after the last one.

    The file chooses the numbers of memo slots, and the reader allocates all slots up to the highest. A number beyond
    the length of the pickle is refused, because it could exhaust the memory.

    Raises:
        DamagedPickle: the pickle is cut short, or has an unknown instruction or such a number.
    """
    try:
        for opcode, argument, position in pickletools.genops(file):  # type: ignore[arg-type]  # it calls these methods alone
            if opcode.name in _MEMO and int(argument or 0) > (position or 0):
                raise DamagedPickle(f"its pickle numbers a memo slot {argument}, beyond its own length")
    except UserError:
        raise
    except Exception as error:  # genops raises ValueError, but its argument readers raise struct.error and others
        raise DamagedPickle(f"its pickle is cut short or malformed ({error})") from None
