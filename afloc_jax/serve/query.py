"""What the address of a request asks.

prompt, class     the texts of /localize and /overlay, and of /classify
threshold         of boxes, -1 to 1                             [0.3]
model             1 or 2                                        [1]
prompts           of /classify: a prompt set of this package
side              of /picture: its longest side in pixels       [1024]
lowest, highest   of /overlay: the ends of the colour bar       [those of the map]
black, white      of /overlay: the grey values shown so         [0, 255]
strength          of /overlay: a factor of the opacity, 0 to 1  [1]
boxes             of /overlay: 0 draws none                     [1]
"""

import math

from starlette.exceptions import HTTPException
from starlette.requests import Request

from afloc_jax.serve.limits import Limits
from afloc_jax.serve.questions import SIDE, About, Look, Question

THRESHOLD = 0.3  # threshold of boxes; the default of `afloc localize`
TEXTS = {"picture": "", "localize": "prompt", "overlay": "prompt", "classify": "class"}  # route -> name of its texts


def question_of(request: Request, route: str, about: About, limits: Limits) -> Question:
    """The question that a request asks. Raises HTTPException (400) for one that has no answer."""
    query = request.query_params
    threshold = _number(request, "threshold", THRESHOLD, -1, 1)
    model = _number(request, "model", 1, 1, len(about.models))
    if model % 1:
        raise HTTPException(400, "model is the number of a model: 1, or 2 where two are served")
    prompts = query.get("prompts", "") if route == "classify" else ""
    if prompts and prompts not in about.prompt_sets:  # files of this machine are not for strangers
        raise HTTPException(400, f"no prompt set of that name; there are {', '.join(about.prompt_sets)}")
    return Question(
        route,
        _texts(request, route, limits),
        threshold,
        request.headers.get("content-type", "").startswith("application/dicom"),
        prompts,
        int(model) - 1,
        int(_number(request, "side", SIDE, 16, math.inf)) if route == "picture" else SIDE,
        _look(request, about.models[int(model) - 1].name) if route == "overlay" else Look(),
    )


def _texts(request: Request, route: str, limits: Limits) -> tuple[str, ...]:
    key = TEXTS[route]
    texts = request.query_params.getlist(key) if key else []
    most = 1 if route == "overlay" else limits.texts
    if key and not texts:
        raise HTTPException(400, f"no {key} given; add ?{key}=TEXT to the address")
    if len(texts) > most:
        raise HTTPException(400, f"{len(texts)} times {key}; at most {most} at once")
    if max(map(len, texts), default=0) > limits.characters:
        raise HTTPException(400, f"a {key} of more than {limits.characters:,} characters; shorten it")
    return tuple(texts)


def _look(request: Request, name: str) -> Look:
    ends = [request.query_params.get(key) for key in ("lowest", "highest")]
    lowest, highest = (_number(request, key, 0, -1e6, 1e6) for key in ("lowest", "highest"))
    shared = None not in ends
    if shared and not lowest < highest:
        raise HTTPException(400, "lowest must be below highest: they are the ends of the colour bar")
    return Look(
        lowest if shared else None,
        highest if shared else None,
        _number(request, "black", 0, -1000, 1000),
        _number(request, "white", 255, -1000, 1000),
        _number(request, "strength", 1, 0, 1),
        request.query_params.get("boxes") != "0",
        name,
    )


def _number(request: Request, key: str, otherwise: float, least: float, most: float) -> float:
    """A number in the address. Raises HTTPException (400) for none, or one beyond its bounds."""
    given = request.query_params.get(key)
    if given is None:
        return otherwise
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        bounds = f"of at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise HTTPException(400, f"{key} must be a number {bounds}")
    return value
