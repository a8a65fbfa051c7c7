"""The web application: it receives image files and returns heat maps as JSON. Nothing is stored or logged.

    GET  /                                        the page
    POST /picture                                 the decoded image
    POST /localize?prompt=TEXT[&prompt=TEXT ...]  heat map and boxes of each phrase     [&threshold=0.3]
    POST /classify?class=NAME[&class=NAME ...]    zero-shot probabilities

The body of a POST is the image file itself: PNG, JPEG or DICOM. A DICOM file without the usual header needs the content
type application/dicom. Errors are {"error": one line} with status 400 (the image or the request is wrong), 403 (the
request comes from another web page), 413 (the file is too large) or 500 (a defect of the server).
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
from afloc_jax.inference.class_prompts import PromptSet
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.model import Model
from afloc_jax.inference.overlays import OPACITY, colour_scale, png_uri, unit_scale
from afloc_jax.settings import Json
from data_pipelines.images import decode_image
from data_pipelines.what_images import only_drawings, warning_on_drawings

LARGEST_BODY = 128 << 20  # bytes; a mammogram of 30 million 16-bit pixels has 60 million bytes
LONGEST_SIDE = 1024  # pixels; larger pictures and maps are scaled down before they are sent
MOST_TEXTS = 16  # phrases or classes in one request, because all maps at original size are in memory at once
THRESHOLD = 0.3  # threshold of boxes; the default of `afloc localize`

# The page cannot load from, send to, or be framed by another site, even if a script were injected into it.
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
    """The web application for a loaded model.

    Args:
        model: the model. It handles one request at a time, in a thread, so that the page and errors are served
            meanwhile.
        name: the name of the model on the page.
        hosts: allowed values of the header Host; "*" allows any.
        largest_body: the largest image file in bytes; larger ones get status 413.
        debug: whether to print tracebacks of defects, which may contain prompts.
    """
    settings: dict[str, Json] = {
        "model": name,
        "drawings": only_drawings(model.config.trained_on),
        "colours": [*colour_scale(256)],
        "opacity": OPACITY,
        "threshold": THRESHOLD,
        "largest": largest_body,
        "most": MOST_TEXTS,
    }
    page = make_page(settings)
    turn = Semaphore(1)  # one image at a time: two would share the same device and need twice the memory

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
        except Exception as error:  # a defect; its message may contain the user's input, so it is not logged
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
    """The page as one HTML document, with its style, its script and the settings of the script."""
    folder = files("afloc_jax.serve")
    page, style, script = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    known = json.dumps(settings).replace("<", "\\u003c")  # "<" could end the script element
    return page.replace("{{style}}", style).replace("{{script}}", script).replace("{{settings}}", known)


def _decode_and(work: Work, model: Model, data: bytes, request: Request) -> dict[str, Json]:
    dicom = request.headers.get("content-type", "").startswith("application/dicom")
    return work(model, decode_image(data, "image.dcm" if dicom else "image", model.config.preprocessing.grey), request)


def _picture(model: Model, pixels: np.ndarray, request: Request) -> dict[str, Json]:
    height, width = pixels.shape
    warning = warning_on_drawings(model.config.trained_on, height, width)
    return {"width": width, "height": height, "picture": png_uri(_shown(pixels)), "warning": warning}


def _localize(model: Model, pixels: np.ndarray, request: Request) -> dict[str, Json]:
    given = request.query_params.get("threshold", str(THRESHOLD))
    try:
        threshold = float(given)
    except ValueError:
        raise UsageError("the threshold is not a number; it must lie between -1 and 1") from None
    found = model.localize([pixels], _texts(request, "prompt"), threshold)[0]
    return {
        **_picture(model, pixels, request),
        "threshold": threshold,
        "prompts": [_described(result) for result in found],
    }


def _described(found: Localization) -> dict[str, Json]:
    """The result of one prompt as JSON. The map is an 8-bit picture: 0 and 255 are its `lowest` and `highest` value."""
    return {
        "prompt": found.prompt,
        "similarity": found.similarity,
        "boxes": found.boxes.tolist(),
        "lowest": float(found.heatmap.min()),
        "highest": float(found.heatmap.max()),
        "heatmap": png_uri(np.rint(255 * _shown(unit_scale(found.heatmap))).astype(np.uint8)),
        "unknown_words": [*found.unknown_words],
        "truncated": found.truncated,
    }


def _classify(model: Model, pixels: np.ndarray, request: Request) -> dict[str, Json]:
    names = _texts(request, "class")
    model.read_prompts(names)  # refuses an empty name
    probabilities = model.classify([pixels], names)[0]
    return {
        "classes": [
            {"class": name, "probability": float(p), **_understood(model, name)}
            for name, p in zip(names, probabilities, strict=True)
        ]
    }


def _understood(model: Model, name: str) -> dict[str, Json]:
    """The unknown words of the phrases of a class, and whether the end of one is not read."""
    readings = model.examine([phrase for side in PromptSet().prompts(name) for phrase in side])
    unknown = dict.fromkeys(word for reading in readings for word in reading.unknown_words)
    return {"unknown_words": [*unknown], "truncated": any(reading.truncated for reading in readings)}


def _texts(request: Request, key: str) -> list[str]:
    texts = request.query_params.getlist(key)
    if not texts:
        raise UsageError(f"no {key} given; add ?{key}=TEXT to the address")
    if len(texts) > MOST_TEXTS:
        raise UsageError(f"{len(texts)} times {key}; at most {MOST_TEXTS} are answered at once")
    return texts


def _shown(picture: np.ndarray) -> np.ndarray:
    """The picture [H, W], scaled down so that no side is longer than LONGEST_SIDE."""
    height, width = picture.shape
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _check_origin(request: Request) -> None:
    """Refuses requests from other web pages, which browsers name in the header Origin. Other programs send none."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise _Refused(403, "only the page of this server may send requests")


async def _read_body(request: Request, largest: int) -> bytes:
    body, received = bytearray(), 0
    async for part in request.stream():
        received += len(part)
        if received <= largest:
            body += part
        elif received > 4 * largest:
            break
    # The rest of a file that is too large is read for a while and dropped: a browser whose upload is cut off would not
    # show the error.
    if received > largest:
        raise _Refused(413, f"the file is too large; at most {largest / (1 << 20):.4g} MiB are read")
    return bytes(body)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": " ".join(message.split())}, status, HEADERS)
