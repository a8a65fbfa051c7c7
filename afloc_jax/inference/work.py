"""The images of a command on many: which are done, which are left, and what came of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from afloc_jax.files import Path
from afloc_jax.inference.films import Film, Stamp, stamp_of
from afloc_jax.inference.inputs import Given, printable
from afloc_jax.inference.journal import Journal, Result


@dataclass
class Done:
    """What a command did: images processed by it and by earlier calls, and the messages of those that failed."""

    now: int
    before: int
    failed: list[str]


class Work:
    """The images of a command that are left to do, and the journal of those that are done."""

    def __init__(
        self, given: Sequence[Given], journal: Journal, is_whole: Callable[[Result], bool] = lambda result: True
    ):
        """Finds what is left. `is_whole` says of an earlier result whether all that belongs to it is there."""
        self.singly = {one.path: one.singly for one in given}
        self._journal = journal
        self._images = {one.path: printable(one.path) for one in given}
        self.left: list[Given] = []
        self._kept: set[Path] = set()
        for one in given:
            image = self._images[one.path]
            if journal.is_done(image, self._stamp(one.path, stamp_of(one.path))) and is_whole(journal.result(image)):
                self._kept.add(one.path)
            else:
                self.left.append(one)
        self.done = Done(0, len(self._kept), [])

    def add(self, film: Film, entry: Result) -> None:
        """Keeps the result of an image, to which its name is added."""
        image = self._images[film.path]
        self._journal.add(image, self._stamp(film.path, film.stamp), {"image": image, **entry})
        self._kept.add(film.path)
        self.done.now += 1

    def results(self) -> Iterator[Result]:
        """The results in the order of the images that were given."""
        return (self._journal.result(image) for path, image in self._images.items() if path in self._kept)

    def finish(self) -> Done:
        """What was done. The journal is kept if something failed, or if a folder or pattern may grow."""
        if not self.done.failed and all(self.singly.values()):
            self._journal.path.unlink()
        return self.done

    def _stamp(self, path: Path, stamp: Stamp) -> list[int]:
        return [*stamp, int(self.singly[path])]
