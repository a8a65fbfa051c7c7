"""Connections that may not be held for nothing: their number and their idle time are bounded.

uvicorn waits for the head of a request as long as a client likes, and answers in plain text what is no HTTP.
"""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from afloc_jax.serve.limits import Limits
from afloc_jax.serve.questions import error


class Connection(H11Protocol):
    """A connection of uvicorn's that is closed when it asks nothing.

    It is idle before the head of a request is complete, and after the answer. The application bounds the time between.
    """

    limits: ClassVar[Limits] = Limits()
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Makes room for the connection, where there are too many, in place of the one that is idle for longest."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._look_later(self.limits.patience)
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self and one.is_idle]
        if len(self.connections) > self.limits.connections:
            min(others, key=lambda one: one._idle_since, default=self).abort()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self.cycle is None or self.cycle.response_complete or self.transport.is_closing()

    def abort(self) -> None:
        """Closes the connection at once, without sending what it has not taken."""
        self.connections.discard(self)
        self.transport.abort()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP in JSON, as all errors."""
        answer = error(400, msg)
        if self.conn.our_state is h11.IDLE:  # else an answer has begun already
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=answer.status, headers=headers),
                h11.Data(data=answer.content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _look_later(self, seconds: float) -> None:
        self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Ends the connection if it has been idle for too long. It looks again as long as the connection is there."""
        if self not in self.connections:
            return
        left = self._idle_since + self.limits.patience - self.loop.time() if self.is_idle else self.limits.patience
        if left <= 0:
            self.abort()
        else:
            self._look_later(left)


def limited(limits: Limits) -> type[Connection]:
    """The class of connections with these limits, which uvicorn makes."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
