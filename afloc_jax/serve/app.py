"""The web application: it receives image files and returns heat maps as JSON. Nothing is stored or logged.

    GET  /                                        the page
    POST /picture                                 the decoded image                     [&side=1024]
    POST /localize?prompt=TEXT[&prompt=TEXT ...]  heat map and boxes of each phrase     [&threshold=0.3]
    POST /overlay?prompt=TEXT                     a PNG of the original size with map and caption
    POST /classify?class=NAME[&class=NAME ...]    zero-shot probabilities               [&prompts=chest]

The body of a POST is the image file itself: PNG, JPEG or DICOM. A DICOM file without the usual header needs the content
type application/dicom. Where two models are served, `model=2` asks the second; `query` has all parameters. A page that
has a token takes it as `token=TOKEN` in the address, or in the header `Authorization: Bearer TOKEN`.

Errors are {"error": one line} with status 400 (the image or the request is wrong), 401 (the token is missing or wrong),
403 (the request comes from another web page), 404 and 405 (there is no such address), 408 (the client is too slow), 413
(the file is too large), 500 (a defect of the server) or 503 (too much is asked at once, or the answer takes too long).
"""

import asyncio
import functools
import secrets
import traceback
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from afloc_jax.serve.limits import LIMITS, Limits, Pace, Room, Share
from afloc_jax.serve.page import make_page
from afloc_jax.serve.query import TEXTS, THRESHOLD, question_of
from afloc_jax.serve.questions import About, AboutModel, Answer, Question, error
from afloc_jax.settings import Json

_PART = 1 << 16  # bytes of an answer that are sent at a time

# The page cannot load from, send to, or be framed by another site, even if a script were injected into it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_GONE = error(400, "the client is gone")

Ask = Callable[[Question, Sequence[bytes], Callable[[], Awaitable[bool]]], Awaitable[Answer | None]]


def make_app(
    ask: Ask,
    about: About,
    *,
    machine: str = "",
    hosts: Sequence[str] = ("*",),
    token: str = "",
    limits: Limits = LIMITS,
    debug: bool = False,
) -> Starlette:
    """The web application.

    Args:
        ask: answers a question about a file, given in parts; see `workers.Worker.ask`.
        about: what the page says about the models.
        machine: the name of the machine, to which the page says that images go.
        hosts: allowed values of the header Host; "*" allows any.
        token: what every request must bring; "" for none.
        limits: the bounds of requests.
        debug: whether to print tracebacks of defects of this process, which may contain phrases.
    """
    settings: dict[str, Json] = {
        "models": [_told(model) for model in about.models],
        "colours": [*about.colours],
        "opacities": [*about.opacities],
        "box": about.box,
        "threshold": THRESHOLD,
        "machine": machine,
        "sets": {**about.prompt_sets},
        "sample": about.sample,
        "sample_phrases": [*about.sample_phrases],
        "largest": limits.body,
        "most": limits.texts,
        "longest": limits.characters,
    }
    page = make_page(settings)
    desk = _Desk(ask, about, limits)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def defect(request: Request, problem: Exception) -> Response:
        if debug:
            traceback.print_exception(problem)
        name = type(problem).__name__
        return _response(error(500, f"internal error, {name}; start afloc serve with --debug to see where"))

    return Starlette(
        routes=[
            Route("/", show_page),
            *(Route(f"/{name}", functools.partial(desk.answer, name), methods=["POST"]) for name in TEXTS),
        ],
        middleware=[Middleware(_Door, hosts=hosts, token=token)],
        exception_handlers={HTTPException: _refused, Exception: defect},
    )


def _told(model: AboutModel) -> Json:
    """What the page is told of a model."""
    return {
        "name": model.name,
        "drawings": model.drawings,
        "calibrated": model.calibrated,
        "trained_on": [*model.trained_on],
        "weights_sha256": model.weights_sha256,
        "sharpen": model.sharpen,
        "prune": model.prune,
        "windows": model.windows,
    }


class _Door:
    """Refuses requests that may not come in, whatever they ask for."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], token: str):
        self.app = app
        self.hosts = [host.strip("[]").lower() for host in hosts]
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(Request(scope)) if scope["type"] == "http" else None
        await (_response(refused) if refused else self.app)(scope, receive, send)

    def _refused(self, request: Request) -> Answer | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if "*" not in self.hosts and _name(host) not in self.hosts:
            return error(400, "the header Host names another machine; open the address that afloc serve printed")
        # Browsers name the page that sends a request; other programs send no Origin.
        if origin is not None and origin.partition("://")[2] != host:
            return error(403, "only the page of this server may send requests")
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given = given if kind.lower() == "bearer" else request.query_params.get("token", "")
        if self.token and not secrets.compare_digest(given.encode(), self.token.encode()):
            return error(401, "the token is missing or wrong; open the address that afloc serve printed")
        return None


class _Desk:
    """Takes questions with their files, and sends the answers, within the limits."""

    def __init__(self, ask: Ask, about: About, limits: Limits):
        self.ask = ask
        self.about = about
        self.limits = limits
        self.uploads = Room(limits.uploads, limits.seconds)
        self.answers = Room(limits.answers)
        self.questions = 0

    async def answer(self, route: str, request: Request) -> Response:
        """Answers a question. The bytes of its file are given back before those of the answer are sent."""
        question = question_of(request, route, self.about, self.limits)
        if self.questions >= self.limits.questions:
            raise HTTPException(503, f"{self.questions} questions are being answered; ask again later")
        self.questions += 1  # until the answer is sent
        try:
            with self.uploads.share() as share:
                parts = await self._read(request, share)
                answer = await self.ask(question, parts, functools.partial(self._is_wanted, request))
        except BaseException as problem:
            self.questions -= 1
            if isinstance(problem, TimeoutError):
                raise HTTPException(408, "the file arrives too slowly; try again over a faster connection") from None
            if isinstance(problem, ClientDisconnect):
                return _response(_GONE)
            if isinstance(problem, asyncio.CancelledError):  # Ctrl-C, after which uvicorn would send plain text
                return _response(error(503, "afloc serve was ended"))
            raise
        return _Sent(answer or _GONE, self)

    async def _is_wanted(self, request: Request) -> bool:
        """Whether the client still waits, asked when there is room for an answer."""
        await self.answers.below()
        return not await request.is_disconnected()

    async def _read(self, request: Request, share: Share) -> list[bytes]:
        """The parts of the file.

        A file that is too large is read for a while and dropped, because a browser whose upload is cut off would not
        show the error.
        """
        parts: list[bytes] = []
        pace, received, largest = Pace(self.limits), 0, self.limits.body
        stream = aiter(request.stream())
        while received <= 4 * largest:
            with pace.waiting():
                part = await anext(stream, None)
            if part is None:
                break
            received += len(part)
            pace.moved(len(part))
            if received <= largest:
                await share.grow(len(part))
                parts.append(part)
            else:
                parts.clear()
                share.release()
        if received > largest:
            raise HTTPException(413, f"the file is too large; at most {largest / (1 << 20):.4g} MiB are read")
        return parts


class _Sent(Response):
    """An answer that is sent in parts, so that its bytes are counted until the client has taken them."""

    def __init__(self, answer: Answer, desk: _Desk):
        super().__init__(answer.content, answer.status, HEADERS, answer.kind)
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer. Raises TimeoutError, which ends the connection, if the client is too slow."""
        content, pace = memoryview(self.body), Pace(self._desk.limits)
        try:
            with self._desk.answers.share(len(content)), anyio.fail_after(self._desk.limits.seconds):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for start in range(0, len(content), _PART):
                    part = bytes(content[start : start + _PART])
                    with pace.waiting():
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                    pace.moved(len(part))
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._desk.questions -= 1


def _response(answer: Answer) -> Response:
    return Response(answer.content, answer.status, HEADERS, answer.kind)


async def _refused(request: Request, problem: Exception) -> Response:
    if not isinstance(problem, HTTPException):
        raise problem
    nowhere = "nothing is here; send GET / or a POST with an image to /picture, /localize, /overlay or /classify"
    response = _response(error(problem.status_code, nowhere if problem.status_code in (404, 405) else problem.detail))
    response.headers.update(problem.headers or {})
    return response


def _name(host: str) -> str | None:
    """The name in a header Host, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
