"""Pickles read without running anything in them.

A pickle is a program: it may name any function and have it called. Here it may build plain Python values and tensors.
Every other name becomes an inert `Stub`, which remembers its arguments. No module is imported for a file and no
function that it names is called, so a hostile file gives stubs or an error.
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
"""What may come out of a pickle."""

_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


class DamagedPickle(UserError):
    """Bytes that are not a whole pickle, or one that builds what it cannot."""


class Readable(Protocol):
    """What the instructions of a pickle are read from."""

    def read(self, count: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


class _Sealed(type):
    """Classes that a pickle cannot change: its BUILD may set attributes of whatever lies on its stack."""

    def __setattr__(cls, name: str, value: Value) -> None:
        raise pickle.UnpicklingError(f"a pickle may not change {cls.__name__}")


class Unchanging:
    """Base of our own values on a pickle's stack: BUILD asks this method first, and so cannot set attributes."""

    __slots__ = ()

    def __setstate__(self, state: Value) -> None:
        raise pickle.UnpicklingError(f"a pickle may not change a {type(self).__name__}")


class Stub(metaclass=_Sealed):
    """An object of a class that is not allowed; nothing of that class ran.

    Attributes:
        path: "module.Class" as the pickle names it.
        arguments: what the object would have been made of.
        state: what would have been set on it; None when nothing.
        entries: what would have been put in it, if it is some kind of dict (pairs) or list.
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
    """Stands in for OrderedDict; attributes that a pickle would set on it (PyTorch's `_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Value) -> None:
        pass


class _Function(Unchanging):
    """A function of ours under a foreign name."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Value]):
        self._call = call

    def __call__(self, *arguments: Value) -> Value:
        return self._call(*arguments)


Named: TypeAlias = "type | Unchanging"  # what a pickle may name

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
        data: the whole pickle and nothing else.
        functions: what "module.name" stands for, where the file calls it; they get arguments of the file's choice.
        classes: values that "module.name" stands for, where the file only mentions it.
        persistent: gives the object of a persistent id (PyTorch's storages).

    Raises:
        DamagedPickle: cut short, malformed, or one that asks for what cannot be. UserError: from `functions` and
            `persistent`.
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
        # latin1 reads the byte strings of Python 2, of which the oldest files are full, whatever they hold.
        value: Value = Unpickler(io.BytesIO(data), encoding="latin1").load()
        return value
    except UserError:
        raise
    except Exception as error:  # malformed programs fail in as many ways as there are instructions
        raise DamagedPickle(f"its pickle is malformed ({type(error).__name__}: {error})") from None


def check(file: Readable) -> None:
    """Read one pickle's instructions without obeying them; leaves `file` behind the last one.

    Memo slots are numbered by the file, and the reader makes room for all up to the highest: a number beyond the
    pickle's own length could only be meant to fill the memory.

    Raises:
        DamagedPickle: cut short, an unknown instruction, or such a number.
    """
    try:
        for opcode, argument, position in pickletools.genops(file):  # type: ignore[arg-type]  # it calls these methods alone
            if opcode.name in _MEMO and int(argument or 0) > (position or 0):
                raise DamagedPickle(f"its pickle numbers a memo slot {argument}, beyond its own length")
    except UserError:
        raise
    except Exception as error:  # genops raises ValueError, but its readers also struct.error and others
        raise DamagedPickle(f"its pickle is cut short or malformed ({error})") from None
