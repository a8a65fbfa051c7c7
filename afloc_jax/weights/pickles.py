"""Pickles read without running anything in them.

A pickle is a program: it may name any function and have it called. Here it may build plain Python values and tensors;
whatever else it names becomes an inert `Stub`, which remembers what it was given. No module is imported on a file's
behalf and nothing of it is called, so a hostile file gives stubs or an error.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from afloc_jax.errors import UserError

_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


class DamagedPickle(UserError):
    """Bytes that are not a whole pickle, or one that builds what it cannot."""


class _Sealed(type):
    """Classes that a pickle cannot change: its BUILD may set attributes of whatever lies on its stack."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"a pickle may not change {cls.__name__}")


class Unchanging:
    """Base of our own values on a pickle's stack: BUILD asks this method first, and so cannot set attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
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

    def __new__(cls, *arguments: Any, **keywords: Any) -> "Stub":
        made = super().__new__(cls)
        made.__dict__.update(arguments=(*arguments, *keywords.items()), state=None, entries=[])
        return made

    def __init__(self, *arguments: Any, **keywords: Any):
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> "Stub":
        return Stub(*arguments, **keywords)

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["entries"].append((key, value))

    def append(self, item: Any) -> None:
        self.__dict__["entries"].append(item)

    def extend(self, items: Any) -> None:
        self.__dict__["entries"].extend(items)

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("a stub stands for something unknown and cannot be pickled")


class Ordered(dict[Any, Any], metaclass=_Sealed):
    """Stands in for OrderedDict; attributes that a pickle would set on it (PyTorch's `_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Function(Unchanging):
    """A function of ours under a foreign name."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": Ordered,
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
}


def load(
    data: bytes,
    functions: dict[str, Callable[..., Any]],
    classes: dict[str, Any],
    persistent: Callable[[Any], Any],
) -> Any:
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
    known = {**_ALLOWED, **classes, **{name: _Function(call) for name, call in functions.items()}}
    stubs: dict[str, _Sealed] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            path = f"{module}.{name}"
            if path in known:
                return known[path]
            if path not in stubs:
                stubs[path] = _Sealed("Stub", (Stub,), {"path": path})
            return stubs[path]

        def persistent_load(self, identity: Any) -> Any:
            return persistent(identity)

    try:
        # latin1 reads the byte strings of Python 2, of which the oldest files are full, whatever they hold.
        return Unpickler(io.BytesIO(data), encoding="latin1").load()
    except UserError:
        raise
    except Exception as error:  # malformed programs fail in as many ways as there are instructions
        raise DamagedPickle(f"its pickle is malformed ({type(error).__name__}: {error})") from None


def check(file: Any) -> None:
    """Read one pickle's instructions without obeying them; leaves `file` behind the last one.

    Memo slots are numbered by the file, and the reader makes room for all up to the highest: a number beyond the
    pickle's own length could only be meant to fill the memory.

    Raises:
        DamagedPickle: cut short, an unknown instruction, or such a number.
    """
    try:
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name in _MEMO and int(argument or 0) > (position or 0):
                raise DamagedPickle(f"its pickle numbers a memo slot {argument}, beyond its own length")
    except UserError:
        raise
    except Exception as error:  # genops raises ValueError, but its readers also struct.error and others
        raise DamagedPickle(f"its pickle is cut short or malformed ({error})") from None
