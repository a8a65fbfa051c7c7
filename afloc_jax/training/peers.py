"""The watch that the processes of a run keep over each other: who is gone is told at once, who hangs after 25 s.

Every process holds one connection to process 0, over which both send a beat each second. The system closes the
connection of a process that dies, whatever killed it. A process that is stopped, or whose machine or network is gone,
sends no beat. Process 0 tells the others. Each leaves then with a line of its own, because what they compute together
cannot go on.

The beat also says how many marks of the training loop a process has passed. One whose main thread alone hangs falls
behind the others, which is told, too. It does not end them: a slow file system, a save and a compilation look the same.

JAX has a watch too. It notices a silent process after 100 s, and ends the others by a C++ abort.
"""

import contextlib
import dataclasses
import json
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

BEAT, PATIENCE = 1.0, 25.0  # seconds between beats; without a beat until a process counts as hanging
FOLLOWED = (2, 3, 130, 143)  # exit statuses that the others take over: it would end them the same way
_DRAIN = 0.3  # seconds until what was sent has arrived; an early end of the process could take it back
_LONGEST = 1000  # bytes of a message
_Message: TypeAlias = dict[str, int | str | None]


@dataclasses.dataclass(frozen=True)
class Departure:
    """A process that takes no part in the run any more.

    Attributes:
        process: its index.
        status: the exit status that it announced; None if it said nothing.
        silent: whether its connection stands, but no beat has come for too long.
    """

    process: int
    status: int | None = None
    silent: bool = False

    @property
    def exit_status(self) -> int:
        """The status with which the others end."""
        return self.status if self.status in FOLLOWED else 1

    def __str__(self) -> str:
        if self.silent:
            what = f"hangs: it has not been heard for {PATIENCE:.0f} s"
        elif self.status is None:
            what = "died without a word, as by kill -9, a crash or too little memory"
        else:
            what = f"ended with exit status {self.status}; its own output says why"
        return (
            f"another process of this run is gone: process {self.process} {what}. Run the same command on all "
            "processes to go on from the last checkpoint"
        )


class _Connection:
    """A connection to another process, and when it was last heard."""

    def __init__(self, connection: socket.socket, process: int | None) -> None:
        connection.setblocking(False)
        self.socket, self.process = connection, process  # None: it has not said who it is
        self.heard = time.monotonic()
        self.mark = 0  # of the training loop, that it has passed last
        self._unread = b""

    def send(self, message: _Message) -> None:
        """Sends a message; one that cannot be sent is lost, which the lack of beats shows."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[_Message]:
        """The messages that have come. Raises OSError or ValueError at the end of the connection, or of its sense."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        self.heard = time.monotonic()
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > _LONGEST:
            raise ValueError("too long")
        return [dict(json.loads(line)) for line in lines]


class Watch:
    """The watch of one process: process 0 listens, the others connect to it."""

    def __init__(
        self,
        process: int,
        on_departure: Callable[[Departure], None],
        on_delay: Callable[[int], None],
        beat: float,
        patience: float,
    ) -> None:
        """Starts nothing yet.

        Args:
            process: the index of this process.
            on_departure: is called in a thread of its own with the first departure.
            on_delay: is called with a process that has been behind another one for `patience`, once for each mark.
            beat, patience: see `BEAT`, `PATIENCE`.
        """
        self._process, self._on_departure, self._on_delay = process, on_departure, on_delay
        self._beat, self._patience = beat, patience
        self._mark = 0
        self._behind: dict[int, tuple[int, float]] = {}  # process 0: the mark of a process, and since when others lead
        self._delayed: dict[int, int] = {}  # process 0: the mark at which a process was told as delayed
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._listener: socket.socket | None = None
        self._token = ""
        self._departed = self._parted = False

    def listen(self) -> tuple[int, str]:
        """Starts the watch of process 0. Returns its port and the word by which others prove that they belong here."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._token = secrets.token_hex(16)
        self._start()
        return int(self._listener.getsockname()[1]), self._token

    def connect(self, host: str, port: int, token: str) -> None:
        """Starts the watch of another process. Raises OSError where process 0 is not reached."""
        connection = _Connection(socket.create_connection((host, port), timeout=self._patience), 0)
        connection.send({"process": self._process, "token": token})
        self._add(connection)
        self._start()

    def passed(self) -> None:
        """Notes that this process has passed a mark. All of them pass the same ones."""
        self._mark += 1

    def announce(self, status: int) -> None:
        """Tells the others that this process is about to end with `status`. 0 ends the watch on both sides."""
        self._parted = self._parted or not status
        for connection in list(self._connections):
            connection.send({"process": self._process, "status": status, "silent": False})
        time.sleep(_DRAIN)

    def _start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="watch").start()

    def _run(self) -> None:
        due = 0.0
        while True:
            for key, _ in self._selector.select(self._beat / 2):
                if isinstance(key.data, _Connection):
                    self._read(key.data)
                else:
                    self._accept()
            now = time.monotonic()
            for connection in list(self._connections):
                if now >= due:
                    connection.send({"mark": self._mark})
                if now - connection.heard > self._patience:
                    self._drop(connection, silent=True)
            if self._process == 0:
                self._look_for_delays(now)
            due = now + self._beat if now >= due else due

    def _look_for_delays(self, now: float) -> None:
        """Tells of the processes that have not passed a mark for too long that another one has passed."""
        marks = {self._process: self._mark}
        marks |= {other.process: other.mark for other in self._connections if other.process is not None}
        for process, mark in marks.items():
            if mark == max(marks.values()):
                self._behind.pop(process, None)
                continue
            before, since = self._behind.setdefault(process, (mark, now))
            if before != mark:
                self._behind[process] = mark, now
            elif now - since > self._patience and self._delayed.get(process) != mark and not self._parted:
                self._delayed[process] = mark
                for connection in self._connections:
                    connection.send({"delayed": process})
                self._on_delay(process)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._add(_Connection(self._listener.accept()[0], None))

    def _add(self, connection: _Connection) -> None:
        self._connections.append(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection) -> None:
        try:
            for message in connection.receive():
                self._take(connection, message)
        except (OSError, ValueError, TypeError):
            self._drop(connection, silent=False)

    def _take(self, connection: _Connection, message: _Message) -> None:
        """Takes a message: a beat, who the sender is, that a process departs, or that one is delayed."""
        process, status = message.get("process"), message.get("status")
        if connection.process is None:
            if not secrets.compare_digest(str(message.get("token")), self._token) or not isinstance(process, int):
                raise ValueError("a stranger")
            connection.process = process
        elif isinstance(mark := message.get("mark"), int):
            connection.mark = mark
        elif isinstance(delayed := message.get("delayed"), int):
            self._on_delay(delayed)
        elif status == 0:
            connection.process = None  # it has done its part
        elif isinstance(process, int):
            self._tell(Departure(process, status if isinstance(status, int) else None, bool(message.get("silent"))))

    def _drop(self, connection: _Connection, silent: bool) -> None:
        self._selector.unregister(connection.socket)
        self._connections.remove(connection)
        connection.socket.close()
        if connection.process is not None:
            self._tell(Departure(connection.process, silent=silent))

    def _tell(self, departure: Departure) -> None:
        """Tells of the first departure: process 0 all others, each process itself."""
        if self._departed or self._parted:
            return
        self._departed = True
        if self._process == 0:
            for connection in self._connections:
                connection.send(dataclasses.asdict(departure))
        threading.Thread(target=self._on_departure, args=(departure,), daemon=True, name="departure").start()
