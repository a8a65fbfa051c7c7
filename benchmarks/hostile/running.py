"""Runs real commands on hostile inputs, in a process that is replaced where one crashes or hangs it."""

import contextlib
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

LIMIT = 60.0  # seconds of one input; the first one of a process imports JAX
LARGEST = 8 << 30  # bytes of memory that the process may take
LONGEST_MESSAGE = 2000  # letters
REFUSED, HARMLESS, CRASH, HANG, SILENT, TRACEBACK = OUTCOMES = (
    "refused",
    "harmless",
    "crashes",
    "hangs",
    "silent",
    "tracebacks",
)
BAD = OUTCOMES[2:]
_INTERNAL = re.compile(r"Traceback \(most recent|internal error|--debug shows where|panicked at")


@dataclass(frozen=True)
class Input:
    """A hostile input.

    Attributes:
        name: what is wrong with it, once in its group.
        change: makes the folder of valid files bad.
        words: the last words of the command line; "IN" and "OUT" stand for the folders there, as in `Group.command`.
        compared: whether the same words succeed on the valid folder, with whose result the outcome is compared.
    """

    name: str
    change: Callable[[Path], None] = lambda folder: None
    words: tuple[str, ...] = ()
    compared: bool = True


def call(words: Sequence[str]) -> int:
    """Runs a command in this process; the first word is "launch", or one of `afloc`. Returns the exit status."""
    if words[0] == "launch":
        import launch

        for name in [name for name in sys.modules if name.startswith("config_")]:
            del sys.modules[name]  # the config file before this one; a process of a user reads one
        return launch.main(["launch.py", *words[1:]])
    from afloc_jax.cli import main

    return main(list(words))


@dataclass(frozen=True)
class Group:
    """Inputs of one kind.

    Attributes:
        name: the name in the table.
        make: writes the valid files into a folder.
        command: the words of the command line; "IN" and "OUT" stand for the folders of its inputs and outputs.
        inputs: the hostile ones.
        result: what came out, to be compared, from the folder of outputs and what was printed on stdout.
        told: lines of stdout that name what was left out or is wrong. A line on stderr tells as well.
        usual: lines of stderr that tell nothing.
        call: runs the words and returns the exit status.
    """

    name: str
    make: Callable[[Path], None]
    command: tuple[str, ...]
    inputs: Sequence[Input]
    result: Callable[[Path, str], object]
    told: str = "(?!)"
    usual: str = "(?!)"
    call: Callable[[Sequence[str]], int] = call


@dataclass
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str
    result: object = None
    escaped: str = ""  # a traceback that the command let through


def judge(ran: Ran, valid: object, told: str = "(?!)", usual: str = "(?!)") -> str:
    """The outcome of a command on a hostile input; `valid` is the result on the valid folder, None if there is none."""
    said = f"{ran.out}\n{ran.err}"
    if ran.escaped or _INTERNAL.search(said) or len(ran.err) > LONGEST_MESSAGE:
        return TRACEBACK
    errors = [line for line in ran.err.splitlines() if line.strip() and not re.search(usual, line)]
    if errors or re.search(told, ran.out):
        return REFUSED
    return HARMLESS if ran.status == 0 and valid is not None and ran.result == valid else SILENT


def run(group: Group, given: Input, valid: Path) -> Ran:
    """Runs the command of a group on a copy of its valid folder after the change of an input."""
    with tempfile.TemporaryDirectory(dir=valid.parent) as scratch:
        inside, outside = Path(scratch, "in"), Path(scratch, "out")
        shutil.copytree(valid, inside)
        outside.mkdir()
        given.change(inside)
        places = {"IN": str(inside), "OUT": str(outside)}
        words = [re.sub(r"(?<![\w-])(IN|OUT)(?=$|/)", lambda found: places[found[1]], word) for word in group.command]
        words += [word.replace("IN/", f"{inside}/") if word.startswith(("IN/", "--")) else word for word in given.words]
        status, escaped = 0, ""
        with _captured(Path(scratch)) as printed:
            try:
                status = group.call(words)
            except SystemExit as ended:  # of the parser of arguments
                status = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                escaped = traceback.format_exc()
        out, err = (text.replace(scratch, "") for text in printed())
        ran = Ran(status, out, err, escaped=escaped)
        if not (status or escaped):
            ran.result = group.result(outside, ran.out)
        return ran


@contextlib.contextmanager
def _captured(folder: Path) -> Iterator[Callable[[], list[str]]]:
    """Collects what is written to stdout and stderr, also by C++; gives a function that returns both."""
    files = [folder / "stdout", folder / "stderr"]
    kept = [os.dup(number) for number in (1, 2)]
    for number, file in enumerate(files, 1):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    try:
        yield lambda: [file.read_text(errors="replace") for file in files]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in enumerate(kept, 1):
            os.dup2(handle, number)
            os.close(handle)


Groups = Callable[[], Sequence[Group]]


def work(connection: Connection, scratch: str, groups: Groups) -> None:
    """The process that runs commands: takes numbers of a group and an input, and answers with outcome and words.

    Its first answer is the name of every group, with those of its inputs.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (LARGEST, LARGEST))
    known = groups()
    connection.send([(group.name, [given.name for given in group.inputs]) for group in known])
    results: dict[tuple[str, tuple[str, ...]], object] = {}
    while (request := connection.recv()) is not None:
        group = known[request[0]]
        given = group.inputs[request[1]]
        valid = Path(scratch, re.sub(r"\W", "_", group.name))
        if not valid.exists():
            making = valid.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            group.make(making)
            making.rename(valid)
        key = group.name, given.words
        if given.compared and key not in results:
            ran = run(group, Input("nothing", words=given.words), valid)
            if ran.status or ran.escaped or judge(ran, ran.result, group.told, group.usual) != HARMLESS:
                connection.send((None, f"{group.name}: the valid folder is not accepted in silence: {ran}"))
                continue
            results[key] = ran.result
        ran = run(group, given, valid)
        outcome = judge(ran, results[key] if given.compared else None, group.told, group.usual)
        connection.send((outcome, (ran.escaped or ran.err or ran.out).strip()))


class Worker:
    """A process that runs commands, and is replaced where one crashes or hangs it."""

    def __init__(self, scratch: Path, groups: Groups, limit: float) -> None:
        self._scratch, self._groups, self._limit = scratch, groups, limit
        self._process: multiprocessing.process.BaseProcess | None = None
        self.names: list[tuple[str, list[str]]] = []

    def start(self) -> None:
        """Starts the process, unless there is one. Raises RuntimeError if it does not begin to work."""
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, str(self._scratch), self._groups))
        self._process.start()
        theirs.close()
        try:
            self.names = self._connection.recv()
        except EOFError:
            raise RuntimeError("the process for hostile inputs did not start; its own output says why") from None

    def outcome(self, group: int, number: int) -> tuple[str, str]:
        """What becomes of an input, and what was said. Raises RuntimeError if its valid folder is not accepted."""
        self.start()
        assert self._process is not None
        self._connection.send((group, number))
        try:
            if not self._connection.poll(self._limit):
                self.end()
                return HANG, f"no answer within {self._limit:.0f} s"
            outcome, said = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode
            self.end()
            return CRASH, f"the process ended with status {status}"
        if outcome is None:
            raise RuntimeError(said)
        return outcome, said

    def end(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


@dataclass
class Tally:
    """The outcomes of the inputs of a group, and what was said of each."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    said: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def row(self) -> list[str]:
        return [self.name, str(self.counts.total()), *(str(self.counts[outcome]) for outcome in OUTCOMES)]


def tally(groups: Groups, names: Iterable[str] = (), limit: float = LIMIT) -> list[Tally]:
    """Runs all inputs of the groups, or of those that are named. Raises RuntimeError for a valid folder that fails."""
    wanted, tallies = set(names), []
    with tempfile.TemporaryDirectory(prefix="afloc_hostile_") as scratch:
        cache = {"XDG_CACHE_HOME": f"{scratch}/cache", "TF_CPP_MIN_LOG_LEVEL": "3", "OPENCV_LOG_LEVEL": "SILENT"}
        with _environment({**cache, "TMPDIR": scratch, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}):
            worker = Worker(Path(scratch), groups, limit)
            try:
                worker.start()
                for index, (group, inputs) in enumerate(worker.names):
                    if wanted and group not in wanted:
                        continue
                    tallies.append(Tally(group))
                    for number, name in enumerate(inputs):
                        outcome, said = worker.outcome(index, number)
                        tallies[-1].counts[outcome] += 1
                        tallies[-1].said[name] = outcome, said
                    print(f"{group}: {dict(tallies[-1].counts)}", file=sys.stderr, flush=True)
            finally:
                worker.end()
    return tallies


@contextlib.contextmanager
def _environment(changed: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
