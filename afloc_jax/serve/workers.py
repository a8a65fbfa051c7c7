"""The process that answers, seen from the page: it is started, asked, stopped after a time limit, and started again."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Self, TypeVar, TypeVarTuple

import anyio.to_thread

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath
from afloc_jax.serve.limits import Limits
from afloc_jax.serve.questions import About, Answer, Question, error, read_about, read_answer, write_question
from afloc_jax.settings import Json

Given = TypeVarTuple("Given")
Done = TypeVar("Done")


class Worker:
    """A process with one or two models, which answers one question at a time.

    Two models are in one process: its memory is that of one, and of the weights and programs of the other.
    As a context manager it starts the process, waits until the models are loaded (`about` describes them), and ends the
    process. Raises UserError for an unusable model folder.
    """

    about: About
    command: Sequence[str] = (sys.executable, "-P", "-m", "afloc_jax.serve.worker")  # -P: no file of the current folder

    def __init__(
        self,
        models: Sequence[tuple[AnyPath, str]],
        limits: Limits,
        *,
        maps: Mapping[str, Json] | None = None,
        debug: bool = False,
    ):
        """Starts nothing yet.

        Args:
            models: the model folders, on this machine, each with the name of a model that has none.
            limits: the bounds of questions, and of the time for an answer.
            maps: how maps are made: arguments of `Model.with_maps`.
            debug: whether the process prints, tracebacks of defects among it.
        """
        self.limits = limits
        named = [[os.fspath(folder), name] for folder, name in models]
        self._settings = {"models": named, "maps": dict(maps or {}), "debug": debug, "limits": asdict(limits)}
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._turn = anyio.Semaphore(1)  # one image at a time: two would need twice the memory

    def __enter__(self) -> Self:
        try:
            self._spawn()
            self.about = self._loaded()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def ask(
        self, question: Question, parts: Sequence[bytes], wanted: Callable[[], Awaitable[bool]]
    ) -> Answer | None:
        """The answer to a question about the file of these parts; None if it is not wanted when its turn has come."""
        async with self._turn:
            if not await wanted():
                return None
            try:
                if self._process is None:
                    self._spawn()
                if not self._ready and self.about != await _in_thread(self._loaded):
                    raise UserError("the model folder has changed since the page was started; start afloc serve again")
                with anyio.fail_after(self.limits.seconds):
                    return await _in_thread(self._ask, question, parts)
            except TimeoutError:
                problem = error(503, f"no answer within {self.limits.seconds:g} s; the work was stopped")
            except UserError as refused:
                self.stop()
                return error(500, str(refused))
            except (EOFError, OSError):
                problem = error(500, f"the process that answers ended ({self.stop()}); it is started again")
            except BaseException:  # cancelled: what the process would write belongs to no question
                self.stop()
                raise
            self.stop()
            self._spawn()  # it loads the model while no one waits
            return problem

    def stop(self) -> str:
        """Ends the process at once, and says how it ended."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return "not started"
        process.poll()
        process.kill()
        status = process.wait()
        return f"signal {-status}" if status < 0 else f"status {status}"

    def _spawn(self) -> None:
        """Starts the process. It ends with the thread that starts it, so this is called in the main thread."""
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # what this process imports, the other finds
        settings = json.dumps({**self._settings, "parent": os.getpid()})
        self._process = subprocess.Popen(
            [*self.command, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def _loaded(self) -> About:
        """Waits until the process has loaded its model, which may take a limited time."""
        process = self._process
        if process is None or process.stdout is None:
            raise EOFError
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.limits.loading, give_up)
        timer.daemon = True
        timer.start()
        try:
            answer = read_answer(process.stdout)
        except EOFError:
            how = self.stop()
            why = f"the process that answers ended before the model was loaded ({how})"
            if late.is_set():
                why = f"the model was not loaded within {self.limits.loading:g} s; its process was stopped"
            raise UserError(why) from None
        finally:
            timer.cancel()
        if answer.status:
            problem = json.loads(answer.content)["error"]
            raise (UsageError if answer.status == UsageError.exit_status else UserError)(problem)
        self._ready = True
        return read_about(answer.content)

    def _ask(self, question: Question, parts: Sequence[bytes]) -> Answer:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EOFError
        try:
            write_question(process.stdin, question, parts)
            return read_answer(process.stdout)
        except (EOFError, OSError):
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            raise


async def _in_thread(work: Callable[[*Given], Done], *given: *Given) -> Done:
    """Runs work that waits for the process. It ends with the process if nobody waits for it any more."""
    return await anyio.to_thread.run_sync(work, *given, abandon_on_cancel=True)
