"""The application of `afloc serve` without a server, and files to ask it of."""

import functools

import cv2
import numpy as np
from starlette.testclient import TestClient

from afloc_jax.serve.answers import about, answer
from afloc_jax.serve.app import make_app
from afloc_jax.serve.limits import LIMITS
from tests.data_pipelines.test_images import dicom_file

HERE = "http://127.0.0.1:8000"


def asking(models, limits=LIMITS, debug=False):
    """Answers as the process does that holds the models, without one."""

    async def ask(question, parts, wanted):
        return answer(models, question, b"".join(parts), limits, debug=debug) if await wanted() else None

    return ask


@functools.cache
def told(*models):
    """What the page says about them."""
    return about(models, [f"model {number}" for number, _ in enumerate(models, 1)], [""] * len(models))


def client(*models, limits=LIMITS, debug=False, known=None, **options):
    app = make_app(asking(models, limits, debug), known or told(*models), limits=limits, **options)
    return TestClient(app, base_url=HERE)


def smooth_picture(height, width, levels):
    """A picture that is not noise: [height, width] float in [0, levels)."""
    coarse = np.random.default_rng(height).random((6, 5), np.float32)
    return (levels - 1) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def write_image(kind, path):
    if kind == "jpeg":
        cv2.imwrite(str(path.with_suffix(".jpg")), smooth_picture(131, 77, 256).astype(np.uint8))
        return path.with_suffix(".jpg")
    if kind == "16-bit png, twice as large as what is shown":
        cv2.imwrite(str(path.with_suffix(".png")), smooth_picture(1536, 2048, 50_000).astype(np.uint16))
        return path.with_suffix(".png")
    dicom_file(
        path, smooth_picture(90, 121, 4096).astype(np.uint16), "MONOCHROME1", 12
    )  # no suffix, as archives have it
    return path
