"""The server: it listens on a port and serves one or two models until Ctrl-C."""

import contextlib
import errno
import ipaddress
import re
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from afloc_jax import extras
from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, absolute, bucket_path, fetched
from afloc_jax.serve.limits import Limits
from afloc_jax.settings import Json

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")  # what addresses and headers carry without escapes


def serve(
    folders: Sequence[AnyPath],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str = "",
    seconds: float = Limits.seconds,
    maps: Mapping[str, Json] | None = None,
    debug: bool = False,
) -> None:
    """Serves one or two models. Prints the address when they are loaded, and returns after Ctrl-C.

    They are in a process of its own, which is stopped where an answer takes too long. This one answers at any time.

    Args:
        folders: the model folders.
        host: the address or name to listen on. On a loopback address only requests that name this machine are served,
            so that no web page can reach the server through a domain of its own (DNS rebinding).
        port: the port; 0 takes a free one.
        token: what every request must bring. Without one a random token is made, unless `host` is a loopback address.
        seconds: the longest time for the computation of one answer.
        maps: how maps are made: arguments of `Model.with_maps`.
        debug: whether to print tracebacks of defects.

    Raises:
        UsageError: starlette or uvicorn is not installed, the token has characters that an address has not, or `maps`
            have another number of windows than 1 to 9.
        UserError: a model folder is unusable, or the port is in use.
    """
    places = [bucket_path(folder) for folder in folders]
    if missing := extras.missing("serve"):
        raise UsageError(f"serve needs {' and '.join(missing)}; run: {extras.install('serve')}")
    if token and not _TOKEN.fullmatch(token):
        raise UsageError("--token takes letters, digits and . _ ~ - alone, as addresses do")
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no image on the disk when this or the other process crashes
    with contextlib.suppress(KeyboardInterrupt), listen(host, port) as listener:  # before the slow load
        import uvicorn

        from afloc_jax.serve.app import make_app
        from afloc_jax.serve.connections import limited
        from afloc_jax.serve.workers import Worker

        limits = replace(Limits(), seconds=seconds)
        local = is_loopback(listener.getsockname()[0])
        token = token or ("" if local else secrets.token_urlsafe(16))
        models = [*zip(map(fetched, places), _names(places), strict=True)]
        with Worker(models, limits, maps=maps, debug=debug) as worker:
            app = make_app(
                worker.ask,
                worker.about,
                machine=socket.gethostname(),
                hosts=(*LOCAL_NAMES, host) if local else ("*",),
                token=token,
                limits=limits,
                debug=debug,
            )
            address = _address(host, listener) + (f"?token={token}" if token else "")
            print(f"serving {' and '.join(map(str, places))} at {address} (Ctrl-C ends it)", flush=True)
            if not local:
                print("afloc: no encryption: images pass the network as they are", file=sys.stderr, flush=True)
            settings = uvicorn.Config(
                app,
                http=limited(limits),
                access_log=False,  # its lines would contain prompts
                log_level="critical",  # the application reports defects itself
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=0,  # whoever presses Ctrl-C does not wait for others
            )
            uvicorn.Server(settings).run(sockets=[listener])


def _names(places: Sequence[Path]) -> list[str]:
    """The names of folders, with that of the folder around them where two are the same."""
    names = [absolute(place).name for place in places]
    if len({*names}) == len(names):
        return names
    return [f"{absolute(place).parent.name}/{name}" for place, name in zip(places, names, strict=True)]


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
