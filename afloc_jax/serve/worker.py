"""The process that answers: it holds the models, reads questions from stdin and writes answers to stdout.

    python -m afloc_jax.serve.worker {"models": [[folder, name], ...], "maps": {...}, "debug": ..., "limits": {...}}

The page starts it (see `workers`), and ends it where an answer takes too long.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import BinaryIO

from afloc_jax.compiled import keep_compiled
from afloc_jax.errors import UserError
from afloc_jax.serve.limits import Limits
from afloc_jax.serve.questions import Answer, error, read_question, write_answer

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


def main(settings: str) -> None:
    given = json.loads(settings)
    answers = _become_worker(given["parent"], debug=given["debug"])
    limits = Limits(**given["limits"])
    keep_compiled()
    try:
        import numpy as np

        from afloc_jax.inference.model import load
        from afloc_jax.serve.answers import about, answer

        models = [load(folder).with_maps(**given["maps"]) for folder, _ in given["models"]]
        for model in models:  # compiles, so that the first request is fast
            side = model.image_size
            model.localize([np.zeros((side, side), np.uint8)], ["warm"])
    except UserError as problem:
        write_answer(answers, error(problem.exit_status, str(problem)))
        return
    described = about(models, [name for _, name in given["models"]], [_version(one) for one, _ in given["models"]])
    write_answer(answers, Answer(0, json.dumps(asdict(described)).encode()))
    while asked := read_question(sys.stdin.buffer):
        write_answer(answers, answer(models, *asked, limits, debug=given["debug"]))
        del asked


def _version(folder: str) -> str:
    """What changes when another model is put into the folder."""
    found = [os.stat(os.path.join(folder, name)) for name in ("config.json", "model.safetensors")]
    return str([(one.st_ino, one.st_size, one.st_mtime_ns) for one in found])


def _become_worker(parent: int, *, debug: bool) -> BinaryIO:
    """Prepares this process, and returns the pipe for answers.

    What libraries print would mix with the answers, or show the content of files in a log. Ctrl-C is for the parent,
    whose end is the end of this process as well.
    """
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(2 if debug else nowhere.fileno(), 1)
        if not debug:
            os.dup2(nowhere.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    return answers


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1])
