"""The bounds of the page: what one request may ask for, and what all connections may hold together."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio


@dataclass(frozen=True)
class Limits:
    """By these numbers the memory and the time of the server are bounded, whoever connects and whatever is sent.

    The two processes hold at most `uploads` + `body` bytes of files that are arriving or waiting, one more file in the
    process that answers, `answers` bytes and one more answer on their way back, and what one image takes. A second
    model adds its weights and programs, and no second image.
    """

    body: int = 128 << 20  # bytes of an image file; a mammogram of 30 million 16-bit pixels has 60 million bytes
    pixels: int = 1 << 25  # of an image
    decoding: int = 1 << 30  # bytes of memory in which a file must be decoded
    texts: int = 16  # phrases or classes in one request
    characters: int = 1000  # of each of them
    uploads: int = 128 << 20  # bytes of all files in memory, beyond which one upload alone goes on
    answers: int = 64 << 20  # bytes of all answers on their way, beyond which none is computed
    questions: int = 200  # requests with a file at a time
    connections: int = 256  # at a time; a new one takes the place of the one that has asked nothing for longest
    seconds: float = 60.0  # of the computation of one answer; then its process is stopped and started again
    loading: float = 300.0  # seconds until that process has loaded the model; then it is stopped
    patience: float = 10.0  # seconds to wait for the rest of a request's head, or in vain for a part of its file
    pace: int = 32 << 10  # bytes a second that a client must send or take on average, beside that patience


LIMITS = Limits()


class Pace:
    """The patience with one client. It is used up by waiting, and refilled by the bytes that are sent or taken."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._left = limits.patience

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Waits for the client. Raises TimeoutError when the patience is used up."""
        began = anyio.current_time()
        with anyio.fail_after(self._left):
            yield
        self._left -= anyio.current_time() - began

    def moved(self, count: int) -> None:
        """Bytes have been sent or taken."""
        self._left = min(self._limits.patience, self._left + count / self._limits.pace)


class Room:
    """The bytes that the requests of all connections hold together, each with a share of its own.

    Shares grow part by part. When the room is full, one of them alone may go on, for a limited time: otherwise uploads
    that all lack their ends would wait for one another. It is the fullest of those that wait, because it is fast.
    """

    def __init__(self, most: int, seconds: float = 60.0):
        self.most = most
        self.seconds = seconds
        self._held: dict[Share, int] = {}
        self._waiting: set[Share] = set()
        self._beyond: Share | None = None  # the one that goes on, until it is released
        self._freed = anyio.Event()

    @property
    def held(self) -> int:
        """Bytes that all shares hold."""
        return sum(self._held.values())

    @contextmanager
    def share(self, count: int = 0) -> "Iterator[Share]":
        """A share of so many bytes, which is given back at the end."""
        share = Share(self)
        self._held[share] = count
        try:
            yield share
        finally:
            share.release()

    async def below(self) -> None:
        """Waits until less is held than the room has."""
        while self.held >= self.most:
            await self._freed.wait()


class Share:
    """The bytes that one request holds of a room."""

    def __init__(self, room: Room):
        self._room = room
        self._end = math.inf

    async def grow(self, count: int) -> None:
        """Takes so many bytes more, as soon as they may be taken. Raises TimeoutError if it goes on for too long."""
        room = self._room
        room._waiting.add(self)
        try:
            while room.held + count > room.most and not self._goes_on():
                await room._freed.wait()
        finally:
            room._waiting.remove(self)
        if anyio.current_time() > self._end:
            raise TimeoutError
        room._held[self] += count

    def release(self) -> None:
        """Gives everything back."""
        room = self._room
        if room._held.pop(self, None) is not None:
            room._beyond = None if room._beyond is self else room._beyond
            room._freed.set()
            room._freed = anyio.Event()

    def _goes_on(self) -> bool:
        room = self._room
        if room._beyond is None and self is max(room._waiting, key=room._held.__getitem__):
            room._beyond, self._end = self, anyio.current_time() + room.seconds
        return room._beyond is self
