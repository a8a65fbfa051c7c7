"""The server: it listens on a port and serves one model until Ctrl-C."""

import contextlib
import errno
import importlib.util
import ipaddress
import socket
import sys

import numpy as np

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, absolute, bucket_path

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def serve(folder: AnyPath, host: str = "127.0.0.1", port: int = 8000, *, debug: bool = False) -> None:
    """Loads a model folder and serves it. Prints the address and returns after Ctrl-C.

    Args:
        folder: the model folder.
        host: the address or name to listen on. On a loopback address only requests that name this machine are served,
            so that no web page can reach the server through a domain of its own (DNS rebinding).
        port: the port; 0 takes a free one.
        debug: whether to print tracebacks of defects.

    Raises:
        UsageError: starlette or uvicorn is not installed.
        UserError: the model folder is unusable, or the port is in use.
    """
    place = bucket_path(folder)
    missing = [package for package in ("starlette", "uvicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"serve needs {' and '.join(missing)}; run: pip install -r requirements-serve.txt")
    with (
        contextlib.suppress(KeyboardInterrupt),
        listen(host, port) as listener,
    ):  # before the slow load
        import uvicorn

        from afloc_jax.inference.model import load
        from afloc_jax.serve.app import make_app

        model = load(place)
        side = model.image_size
        model.localize([np.zeros((side, side), np.uint8)], ["warm"])  # compiles, so that the first request is fast
        local = is_loopback(listener.getsockname()[0])
        app = make_app(
            model,
            name=model.config.name or absolute(place).name,
            hosts=(*LOCAL_NAMES, host.lower()) if local else ("*",),
            debug=debug,
        )
        print(f"serving {place} at {_address(host, listener)} (Ctrl-C ends it)", flush=True)
        if not local:
            print("afloc: no login: everyone who can reach this port can use it", file=sys.stderr, flush=True)
        settings = uvicorn.Config(
            app,
            access_log=False,  # its lines would contain prompts
            log_level="critical",  # the application reports defects itself
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        uvicorn.Server(settings).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError, with what to do, where the address cannot be used."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} of {host} is in use; end the program that uses it or choose another with --port"
        elif error.errno == errno.EACCES:
            problem = f"port {port} may not be opened by this user; choose one above 1023 with --port"
        else:
            problem = f"--host {host} is not an address of this machine; use 127.0.0.1 (local) or 0.0.0.0 (all)"
        raise UserError(problem) from None


def is_loopback(address: str) -> bool:
    """Whether an IP address can only be reached from this machine."""
    return ipaddress.ip_address(address).is_loopback


def _address(host: str, listener: socket.socket) -> str:
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"
