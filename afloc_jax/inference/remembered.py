"""A cache of bounded size that several threads may use at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """Values by their keys, of a total size of at most `most`. Those that were not asked for longest are let go first.

    >>> lengths = Remembered[str, int](most=2)
    >>> lengths.all_of(["a", "bb", "a"], lambda new: [len(key) for key in new])
    [1, 2, 1]
    >>> lengths.all_of(["ccc", "bb"], lambda new: print("new:", *new) or [len(key) for key in new])
    new: ccc
    [3, 2]
    >>> sorted(lengths.kept())
    ['bb', 'ccc']
    """

    def __init__(self, most: int, size: Callable[[Value], int] = lambda value: 1):
        """An empty cache.

        Args:
            most: the total size of all values.
            size: the size of a value; by default all have size 1.
        """
        self._most, self._size, self._total = most, size, 0
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self) -> list[Key]:
        """The keys, the one that was asked for last at the end."""
        with self._lock:
            return list(self._kept)

    def clear(self) -> None:
        """Lets go of everything."""
        with self._lock:
            self._kept.clear()
            self._total = 0

    def all_of(self, keys: Sequence[Key], compute: Callable[[list[Key]], Iterable[Value]]) -> list[Value]:
        """The values of all keys, of which `compute` gives those that are not kept, in the order of its argument.

        Threads do not wait for what others compute. Of two that compute one value both get that of the first, so that
        all agree.
        """
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        new = [key for key in dict.fromkeys(keys) if key not in found]
        found.update(zip(new, compute(new) if new else (), strict=True))
        with self._lock:
            for key in found:
                if key in self._kept:
                    found[key] = self._kept[key]
                else:
                    self._kept[key] = found[key]
                    self._total += self._size(found[key])
                self._kept.move_to_end(key)
            while self._total > self._most:
                self._total -= self._size(self._kept.popitem(last=False)[1])
        return [found[key] for key in keys]
