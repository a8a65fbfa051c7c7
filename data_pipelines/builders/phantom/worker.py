"""What a worker process does: phantoms to records. Imports little, so that processes start quickly."""

from typing import Any

import cv2
import numpy as np

from data_pipelines.builders.phantom.drawing import SIZE
from data_pipelines.builders.phantom.generate import Phantom, generate


def initialize() -> None:
    """Run once in each worker: one process per CPU leaves no room for OpenCV's own threads."""
    cv2.setNumThreads(1)


def records(seed: int, split: str, start: int, stop: int) -> list[dict[str, Any]]:
    """The records of phantoms start..stop-1 of a split, as data_pipelines.records describes them."""
    return [as_record(generate(seed, split, index), f"{seed}-{split}-{index}") for index in range(start, stop)]


def as_record(phantom: Phantom, name: str) -> dict[str, Any]:
    return {
        "id": f"phantom-{name}",
        "image": phantom.image.tobytes(),
        "image_size": SIZE,
        "original_height": SIZE,
        "original_width": SIZE,
        "patient": f"phantom-{name}",
        "view": phantom.view,
        "sentences": phantom.sentences,
        "impression_count": phantom.impression_count,
        "findings": [
            {"label": finding.label, "prompt": finding.prompt, "mask": _png(finding.mask)}
            for finding in phantom.findings
        ],
    }


def _png(mask: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    if not done:
        raise RuntimeError("OpenCV cannot encode PNG here")
    return data.tobytes()
