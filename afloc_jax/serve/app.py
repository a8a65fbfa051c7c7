"""The application behind the page: image bytes in, maps as JSON out. Nothing is kept, written or logged.

    GET  /                                        the page
    POST /picture                                 the image as it was read
    POST /localize?prompt=TEXT[&prompt=TEXT ...]  where each phrase is     [&threshold=0.3]
    POST /classify?class=NAME[&class=NAME ...]    zero-shot probabilities

The body of a POST is the file itself: PNG, JPEG or DICOM. A DICOM file without the usual header needs the content type
application/dicom. What cannot be done is answered by {"error": one line} and status 400 (the image or the call), 403
(another web page asks), 413 (too large) or 500 (a defect).
"""

import functools
import json
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from urllib.parse import urlsplit

import cv2
import numpy as np
from anyio import Semaphore
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from afloc_jax.errors import UsageError, UserError
from afloc_jax.inference.model import Localization, Model
from afloc_jax.inference.overlays import OPACITY, colour_scale, png_uri, unit_scale
from afloc_jax.settings import Json
from data_pipelines.images import decode_image

LARGEST_BODY = 128 << 20  # bytes; a mammogram of 30 million 16-bit pixels has 60 million
LONGEST_SIDE = 1024  # pixels; larger pictures and maps are scaled down before they are sent
MOST_TEXTS = 16  # phrases or classes in one request; their maps at original size are all held in memory
THRESHOLD = 0.3  # for boxes; the default of `afloc localize`

# The page cannot load, send or be framed anywhere else, whatever is written into it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Work = Callable[[Model, np.ndarray, Request], dict[str, Json]]


class _Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def make_app(
    model: Model,
    *,
    name: str,
    hosts: Sequence[str] = ("*",),
    largest_body: int = LARGEST_BODY,
    debug: bool = False,
) -> Starlette:
    """The application of a loaded model.

    Args:
        model: answers one request after the other, in a thread; meanwhile the page and refusals are served.
        name: name of the model, shown on the page.
        hosts: names by which requests may call this machine (header Host); "*" allows any.
        largest_body: bytes of an image file; more is refused with status 413.
        debug: print tracebacks of defects, which may hold prompts.
    """
    settings: dict[str, Json] = {
        "model": name,
        "colours": [*colour_scale(256)],
        "opacity": OPACITY,
        "threshold": THRESHOLD,
        "largest": largest_body,
        "most": MOST_TEXTS,
    }
    page = make_page(settings)
    turn = Semaphore(1)  # one image at a time: two would only share the same device and double the memory

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def answer(request: Request, work: Work) -> Response:
        try:
            _check_origin(request)
            data = await _read_body(request, largest_body)
            async with turn:
                content = await run_in_threadpool(_decode_and, work, model, data, request)
            return JSONResponse(content, headers=HEADERS)
        except _Refused as error:
            return _error(error.status, str(error))
        except UserError as error:
            return _error(400, str(error))
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:  # a defect of ours; its message may hold what the user sent, so it is not logged
            if debug:
                traceback.print_exc()
            return _error(500, f"internal error, {type(error).__name__}; start afloc serve with --debug to see where")

    def post(path: str, work: Work) -> Route:
        endpoint: Callable[[Request], Awaitable[Response]] = functools.partial(answer, work=work)
        return Route(path, endpoint, methods=["POST"])

    return Starlette(
        routes=[
            Route("/", show_page),
            post("/picture", _picture),
            post("/localize", _localize),
            post("/classify", _classify),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
    )


def make_page(settings: Mapping[str, Json]) -> str:
    """The page as one document, with its style, its script and the settings that the script needs."""
    folder = files("afloc_jax.serve")
    page, style, script = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    known = json.dumps(settings).replace("<", "\\u003c")  # cannot end the element that it stands in
    return page.replace("{{style}}", style).replace("{{script}}", script).replace("{{settings}}", known)


def _decode_and(work: Work, model: Model, data: bytes, request: Request) -> dict[str, Json]:
    dicom = request.headers.get("content-type", "").startswith("application/dicom")
    return work(model, decode_image(data, "image.dcm" if dicom else "image"), request)


def _picture(model: Model, pixels: np.ndarray, request: Request) -> dict[str, Json]:
    height, width = pixels.shape
    return {"width": width, "height": height, "picture": png_uri(_shown(pixels))}


def _localize(model: Model, pixels: np.ndarray, request: Request) -> dict[str, Json]:
    given = request.query_params.get("threshold", str(THRESHOLD))
    try:
        threshold = float(given)
    except ValueError:
        raise UsageError("the threshold is no number; it lies between -1 and 1") from None
    found = model.localize([pixels], _texts(request, "prompt"), threshold)[0]
    return {
        **_picture(model, pixels, request),
        "threshold": threshold,
        "prompts": [_described(result) for result in found],
    }


def _described(found: Localization) -> dict[str, Json]:
    """What is told of one prompt. The map is a picture whose 0 and 255 stand for its `lowest` and `highest` value."""
    return {
        "prompt": found.prompt,
        "similarity": found.similarity,
        "boxes": found.boxes.tolist(),
        "lowest": float(found.heatmap.min()),
        "highest": float(found.heatmap.max()),
        "heatmap": png_uri(np.rint(255 * _shown(unit_scale(found.heatmap))).astype(np.uint8)),
    }


def _classify(model: Model, pixels: np.ndarray, request: Request) -> dict[str, Json]:
    names = _texts(request, "class")
    model.read_prompts(names)  # refuses an empty name
    probabilities = model.classify([pixels], names)[0]
    return {"classes": [{"class": n, "probability": float(p)} for n, p in zip(names, probabilities, strict=True)]}


def _texts(request: Request, key: str) -> list[str]:
    texts = request.query_params.getlist(key)
    if not texts:
        raise UsageError(f"no {key} given; add ?{key}=TEXT to the address")
    if len(texts) > MOST_TEXTS:
        raise UsageError(f"{len(texts)} times {key}; at most {MOST_TEXTS} are answered at once")
    return texts


def _shown(picture: np.ndarray) -> np.ndarray:
    """A picture [H, W] no larger than what is sent."""
    height, width = picture.shape
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _check_origin(request: Request) -> None:
    """Refuse requests of other web pages, which browsers name in the header Origin. Other programs send none."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise _Refused(403, "only the page of this server may ask it")


async def _read_body(request: Request, largest: int) -> bytes:
    body, received = bytearray(), 0
    async for part in request.stream():
        received += len(part)
        if received <= largest:
            body += part
        elif received > 4 * largest:
            break
    # A file that is too large is read on for a while and dropped, because a browser that is cut off shows no answer.
    if received > largest:
        raise _Refused(413, f"the file is too large; at most {largest / (1 << 20):.4g} MiB are read")
    return bytes(body)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": " ".join(message.split())}, status, HEADERS)
