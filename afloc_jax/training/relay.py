"""A relay between JAX and its coordination service, which process 0 of a run holds.

JAX ends a process by a C++ abort as soon as its connection to the service breaks, and asks nobody before: the callback
that jaxlib takes for it cannot be a Python function (std::bad_cast in 0.10.2). The relay keeps JAX's end of the
connection open when process 0 is gone, so that `peers` can say what happened.
"""

import contextlib
import socket
import threading
import time

_RETRY = 0.2  # seconds between attempts to reach the service, which may start later


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of "host:port".

    >>> host_and_port("[::1]:1234")
    ('::1', 1234)
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def relay(address: str) -> str:
    """Starts a relay to the service at `address`, for the life of this process; returns its own address."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(server, host_and_port(address)), daemon=True, name="relay").start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _accept(server: socket.socket, service: tuple[str, int]) -> None:
    while True:
        client, _ = server.accept()
        threading.Thread(target=_serve, args=(client, service), daemon=True, name="relay").start()


def _serve(client: socket.socket, service: tuple[str, int]) -> None:
    upstream = _reached(service)
    threading.Thread(target=_copy, args=(upstream, client), daemon=True, name="relay").start()
    _copy(client, upstream)
    upstream.close()  # the client has closed; the other way round nothing is closed


def _reached(service: tuple[str, int]) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection(service)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError:
            time.sleep(_RETRY)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
