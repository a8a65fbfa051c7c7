"""All measurements on a GPU within minutes: its matrix rate, the loss, the step and 300 steps of training.

    python -m benchmarks.gpu_card --out FOLDER [--minutes 9] [--phantoms FILE.npz] [--wheels FOLDER] [--skip TEXT ...]
    JAX_PLATFORMS=cpu python -m benchmarks.gpu_card --out FOLDER --tiny     a rehearsal without a card

rate   bfloat16 products: square ones, and those of the loss's shapes; by JAX and by PyTorch
loss   value and gradients of all three levels at 128 and 64 pairs: ours, by XLA and by the GPU kernels, with the norm
       of the gradients; and the published formula in PyTorch
step   the whole training step at 128 and 64, and one round at 1,024 with encoders computed again by blocks
train  300 steps of configs/afloc.py on phantoms, batches made beforehand (benchmarks/gpu_phantoms.py)

A machine that lacks packages and reaches no index gets them from a folder of wheels (`pip download --no-deps`).
Every result is written to FOLDER as soon as it is known: results.jsonl, results.txt, losses.jsonl, and the end of each
process's error output in errors.txt. Each part has its own process and time limits; a part that fails is reported in
one line. Parts compile at the same time, but while one is measured, all others are stopped (SIGSTOP). At most two parts
that need the card's memory for their preparation run at a time, and only one at 1,024 pairs. A `share` is the rate of
useful products of the loss (see gpu_loss.py), relative to the best measured product of this card.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.gpu_sides import REPOSITORY

MARK = "@@ "  # begins a line for the parent; libraries print others
END = "end"  # the last such line: a process may take long to end
LARGE = 128  # pairs; of batches beyond it only one is alive at a time
GRACE = 1.0  # seconds for kernels of stopped processes to end
SOON = 100.0  # seconds before the end, from when on no job waits for those before it


@dataclass(frozen=True)
class Job:
    """One process, which prepares, waits for its turn, measures and ends."""

    name: str
    worker: str  # a function of gpu_workers.py
    batch: int = 0
    side: str = ""
    settings: tuple[str, ...] = ()  # KEY=VALUE of the config
    repeats: int = 5
    warm_up: int = 2
    card: bool = False  # needs the card's memory before its turn
    first: bool = False  # starts at once: what takes longest to compile
    last: bool = False  # measured when nothing before it is left, or little time
    ready_limit: float = 300.0
    limit: float = 60.0
    environment: dict[str, str] = field(default_factory=dict, hash=False)


LOW_RANK = ("loss.low_rank=true",)
KERNELS = "loss.kernel=triton"
SAVED = ("loss.low_rank=true", "training.remat=blocks")


def jobs() -> list[Job]:
    """All jobs, the most important first."""
    found = [Job("rate jax", "rate_jax", limit=40), Job("rate torch", "rate_torch", card=True, limit=40)]
    for batch in (128, 64):
        found += [
            Job(f"loss {batch}: ours, low rank", "loss_ours", batch, settings=LOW_RANK),
            Job(f"loss {batch}: ours, low rank, kernels", "loss_ours", batch, settings=(*LOW_RANK, KERNELS)),
            Job(f"loss {batch}: ours", "loss_ours", batch, settings=("loss.low_rank=false",)),
            Job(f"loss {batch}: eager", "loss_torch", batch, "eager", card=True),
            Job(f"loss {batch}: compiled", "loss_torch", batch, "compiled", card=True),
        ]
    for batch in (128, 64):
        found += [Job(f"step {batch}: ours, low rank", "step", batch, "ours", LOW_RANK, 10, first=True)]
        found += [Job(f"step {batch}: {side}", "step", batch, side, repeats=10, card=True) for side in TORCH]
    large = partial(Job, worker="step", batch=1024, settings=SAVED, repeats=2, warm_up=1, ready_limit=450, limit=90)
    # Ours compiles from the start and needs no memory before its turn. PyTorch's starts after it, and compiles for
    # minutes: in the other order no time was left for ours.
    found += [
        large(name="step 1024: ours, low rank", side="ours", first=True, last=True),
        large(name="step 1024: compiled checkpointed", side="compiled checkpointed", card=True),
        Job("train 128: 300 steps", "train", 128, settings=LOW_RANK, last=True, limit=400),
    ]
    return found


TORCH = ("eager", "compiled")


class Running:
    """A started job: its output lines, and whether it is ready, failed or done."""

    def __init__(self, job: Job, arguments: argparse.Namespace, folder: Path):
        self.job, self.began, self.ready, self.ended = job, time.monotonic(), False, False
        self.errors = folder / f"{job.name.replace(' ', '_')}.err"
        command = [sys.executable, "-m", "benchmarks.gpu_workers", job.worker, "--batch", str(job.batch)]
        command += ["--side", job.side, "--repeats", str(job.repeats), "--warm-up", str(job.warm_up)]
        command += ["--weights", str(folder / "weights.safetensors"), "--out", str(arguments.out)]
        command += ["--limit", str(job.limit)] + ["--tiny"] * arguments.tiny
        command += ["--phantoms", str(arguments.phantoms)] if arguments.phantoms else []
        for setting in job.settings:
            command += ["--set", setting]
        # JAX would take three quarters of the card at once, and no more.
        memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        environment = os.environ | memory | job.environment
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors.open("w"), text=True,
            cwd=REPOSITORY, env=environment, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.commands, self.answers = self.process.stdin, self.process.stdout
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.answers:
            if line.startswith(MARK):
                self.lines.put(line.removeprefix(MARK).strip())
        self.lines.put(None)

    def look(self) -> None:
        """Before its turn: the first line says that it is ready."""
        if not self.ready and not self.ended:
            try:
                line = self.lines.get_nowait()
            except queue.Empty:
                return
            self.ready, self.ended = line is not None, line is None

    @property
    def idle(self) -> bool:
        """Whether it is ready and waits for others."""
        return self.ready and self.job.last

    def send(self, number: int) -> None:
        """A signal to the process and its children."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            self.ended = True

    def why(self) -> str:
        """In a line."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output and went on"
        text = self.errors.read_text(errors="replace").strip()
        if "RESOURCE_EXHAUSTED" in text or "OutOfMemoryError" in text or "out of memory" in text:
            return "out of memory"
        return f"exit status {status}: {(text.splitlines() or [''])[-1][:300]}"


class Card:
    """Runs the jobs in order and collects their results."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.arguments, self.folder, self.began = arguments, folder, time.monotonic()
        self.running: list[Running] = []
        self.best = 0.0  # TFLOP/s of a product

    def left(self) -> float:
        return 60 * self.arguments.minutes - (time.monotonic() - self.began)

    def say(self, name: str, **facts) -> None:
        """One result, to both files and the terminal."""
        at = round(time.monotonic() - self.began, 1)
        self.best = max(self.best, facts.get("tflops", 0.0))
        if "useful_tflops" in facts and self.best:
            facts["share"] = round(facts["useful_tflops"] / self.best, 4)
        with (self.arguments.out / "results.jsonl").open("a") as lines:
            lines.write(json.dumps({"name": name, "at": at, **facts}) + "\n")
        text = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "all_seconds")
        with (self.arguments.out / "results.txt").open("a") as lines:
            lines.write(f"[{at:6.1f}] {name}: {text}\n")
        print(f"[{at:6.1f}] {name}: {text}"[:400], flush=True)

    def start(self, pending: list[Job]) -> None:
        """What may get ready now: `first` ones, others as far as there are processes, one that needs the card."""
        alive, busy = {each.job for each in self.running}, sum(not each.idle for each in self.running)
        large = next((job for job in pending if job.batch > LARGE), None)
        for job in [job for job in pending if job.first] + pending:
            cards = sum(each.job.card for each in self.running)
            waits = job.card and cards > (0 if job.batch > LARGE else 1)
            if job in alive or waits or (job.batch > LARGE and job != large):
                continue
            if job.first or job.card or busy < self.arguments.processes:
                self.running.append(Running(job, self.arguments, self.folder))
                alive.add(job)
                busy += 1

    def next(self, pending: list[Job]) -> Running | None:
        """The most important job that is ready or has failed."""
        for each in self.running:
            each.look()
            if not (each.ready or each.ended) and time.monotonic() - each.began > each.job.ready_limit:
                self.end(each)
                self.say(each.job.name, failed=f"not ready within {each.job.ready_limit:.0f} s")
                pending.remove(each.job)
                return None
        waits = pending[1:] if self.left() > SOON else []
        done = [
            each for each in self.running if each.ended or (each.ready and not (each.job.last and each.job in waits))
        ]
        return min(done, key=lambda each: pending.index(each.job), default=None)

    def end(self, which: Running) -> None:
        which.send(signal.SIGKILL)
        which.process.wait()
        self.running.remove(which)

    def measure(self, which: Running) -> None:
        """Its turn: all others stand still."""
        others = [each for each in self.running if each is not which and not each.ended]
        for each in others:
            each.send(signal.SIGSTOP)
        stopped = time.monotonic()
        used = memory_in_use()
        if others:
            time.sleep(max(GRACE - (time.monotonic() - stopped), 0))
        facts = {"ready_seconds": round(time.monotonic() - which.began, 1), "card_mib_in_use": used}
        until = time.monotonic() + min(which.job.limit, max(self.left(), 1))
        try:
            which.commands.write(f"{until - time.monotonic()}\n")
            which.commands.flush()
            while (line := which.lines.get(timeout=max(until - time.monotonic(), 0))) not in (None, END):
                found = json.loads(line)
                self.say(f"{which.job.name}{found.pop('part', '')}", **found, **facts)
                facts = {}
            if line is None:
                self.say(which.job.name, failed=which.why(), **facts)
        except BrokenPipeError:
            self.say(which.job.name, failed=which.why(), **facts)
        except queue.Empty:
            self.say(which.job.name, failed=f"not done within {which.job.limit:.0f} s or the time left", **facts)
        for each in others:
            each.send(signal.SIGCONT)
        self.end(which)

    def run(self, pending: list[Job]) -> None:
        try:
            while pending and self.left() > 0:
                self.start(pending)
                which = self.next(pending)
                if which is None:
                    time.sleep(0.1)
                elif which.ended:
                    pending.remove(which.job)
                    self.say(which.job.name, failed=which.why())
                    self.end(which)
                else:
                    pending.remove(which.job)
                    self.measure(which)
            for job in pending:
                self.say(job.name, failed="no time left")
        finally:
            for each in list(self.running):
                self.end(each)
            with (self.arguments.out / "errors.txt").open("w") as errors:
                for path in sorted(self.folder.glob("*.err"), key=lambda path: path.stat().st_mtime):
                    errors.write(f"== {path.stem}\n{path.read_text(errors='replace')[-6000:]}\n")


def install(wheels: Path, folder: Path) -> None:
    """Installs wheels for the processes that start from now on, without what they depend on and without an index."""
    found = [str(path.resolve()) for path in sorted(wheels.glob("*.whl"))]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *found], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def memory_in_use() -> int | None:
    """MiB of the card, by all processes."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it ends whatever is left")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="at a time")
    parser.add_argument("--phantoms", type=Path, metavar="FILE.npz", help="without it nothing is trained")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="packages to install first, *.whl")
    parser.add_argument("--skip", nargs="+", default=[], metavar="TEXT", help="jobs with it in their name")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a rehearsal")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    skip = arguments.skip + ([] if arguments.phantoms else ["train"])
    chosen = [job for job in jobs() if not any(text in job.name for text in skip)]
    with tempfile.TemporaryDirectory() as folder:
        card = Card(arguments, Path(folder))
        if arguments.wheels:
            install(arguments.wheels, Path(folder) / "packages")
        card.run([Job("weights", "weights", first=True, environment={"JAX_PLATFORMS": "cpu"}), *chosen])


if __name__ == "__main__":
    main()
