"""Checks that a change of the code changed no number: it runs training, evaluation and scoring and hashes all results.

    python -m benchmarks.same_numbers --data DIR [--tree CHECKOUT] [--json FILE] [--against FILE] [--new METRIC]
    python -m benchmarks.same_numbers --data DIR --tree OLD --halfway FOLDER     a workdir that stops half way, a model
    python -m benchmarks.same_numbers --data DIR --tree NEW --resume FOLDER      does NEW go on to the same weights?

The program uses only public commands (launch.py, `afloc`), so it can check any checkout (--tree, by default its own).
For each case it prints a line with the SHA-256 of the arrays of model.safetensors (names, shapes, bytes), of the
numbers in metrics.jsonl, of the metrics in summary.json and of per_sample.csv. The exit status is 1 if a number differs
from --against or a run failed. Numbers depend on the processor and on the versions of JAX and XLA, so compare on one
machine. Each run has one core, because reductions are split by the number of cores. It takes about 8 minutes of one
idle core on an empty --data, and 4 if the programs are compiled already.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.score_files import score_cases, write_score_files

ROOT = Path(__file__).resolve().parents[1]
Hashes = dict[str, str]

# The published recipe at the size of a test; written to --data, because a config file is something that users write.
TEST_SIZE = '''"""configs/afloc.py at the size of a test: 10 steps of 8 phantoms."""

from ml_collections import ConfigDict

from configs import afloc


def get_config():
    config = afloc.get_config()
    config.name = "test_size"
    config.data.dataset = "phantom"
    config.data.builder = ConfigDict({"train": 80, "validation": 16, "test": 12, "seed": 3})
    config.data.max_tokens = 48
    config.model.projection_dim = 16
    config.model.image.backbone = "resnet_small"
    config.model.image.input_size = 64
    config.model.image.options = ConfigDict({"widths": (4, 8, 8), "stem_width": 4})
    config.model.text.bert = ConfigDict(
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "vocab_size": 200, "max_position_embeddings": 64}
    )
    config.model.text.last_layers = 1
    config.optimizer.lr = 1e-3
    config.loss.low_rank = False  # what trees before "auto" did; it changes rounding, and so the hashes
    config.training.update(batch_size=8, steps=10, precision="float32", log_every=1, keep_best=1, validate_every=5)
    return config
'''

# Cases of the published three levels: devices, and what differs from TEST_SIZE.
PUBLISHED: dict[str, tuple[int, tuple[str, ...]]] = {
    "tiled, exponential": (
        1, ("loss.implementation=tiled", "optimizer.schedule=exponential", "training.steps=25")
    ),
    "ring": (8, ("loss.implementation=ring",)),
    "low_rank": (1, ("loss.low_rank=True",)),
    "micro_batch": (1, ("training.micro_batch=4",)),
    "fsdp": (8, ("training.fsdp=2",)),
    # So fast that the validation loss rises, and the plateau is met several times.
    "plateau": (
        1,
        ("optimizer.schedule=plateau", "optimizer.lr=0.3", "training.validate_every=1", "training.steps=30",
         "optimizer.decay=0.5", "training.keep_best=40"),
    ),
    "groups, bfloat16": (
        2,
        ("loss.contrast_group=4", "model.image.statistics_group=4", "training.precision=bfloat16",
         "training.remat=blocks", "data.augment=True", "data.sentences=impression"),
    ),
}  # fmt: skip
LOGGED = ("step", "split", "loss", "loss/report", "loss/sentence", "loss/word", "learning_rate", "grad_norm")
HALFWAY = (200, 60)  # steps of the run that is stopped, and the first step after which it may stop


class Failed(Exception):
    """A command of the tree ended with an unexpected exit status."""


class Tree:
    """A checkout, with functions that call its commands."""

    def __init__(self, root: Path, data: Path, new: Collection[str] = ()) -> None:
        self.root, self.data, self.new = root.resolve(), data.resolve(), new
        self.data.mkdir(parents=True, exist_ok=True)
        if not self.test_size.exists() or self.test_size.read_text() != TEST_SIZE:  # several trees may share --data
            self.test_size.write_text(TEST_SIZE)
        self.core = {min(os.sched_getaffinity(0))}

    def start(self, arguments: Iterable[str | Path], devices: int = 1) -> subprocess.Popen[str]:
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")},
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "XDG_CACHE_HOME": str(self.data / "cache"),
        }
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=self.root, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, self.core),
        )  # fmt: skip

    def call(self, arguments: Iterable[str | Path], devices: int = 1) -> None:
        process = self.start(arguments, devices)
        said = process.communicate()[1]
        if process.returncode:
            raise Failed(f"status {process.returncode}: {said[-2000:]}")

    def train(self, config: str | Path, workdir: Path, changes: Iterable[str], devices: int = 1) -> Hashes:
        self.call(self.launch(config, workdir, changes), devices)
        return {"weights": weights(workdir / "model"), "metrics": logged(workdir / "metrics.jsonl")}

    def launch(self, config: str | Path, workdir: Path, changes: Iterable[str]) -> list[str]:
        data = f"--config.data.directory={self.data / 'records'}"
        changed = [f"--config.{change}" for change in changes]
        return ["launch.py", f"--config={config}", f"--workdir={workdir}", data, *changed]

    @property
    def test_size(self) -> Path:
        return self.data / "test_size.py"


# What is hashed


def sha256(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def canonical(content: object) -> str:
    return sha256(json.dumps(content, sort_keys=True))


def weights(folder: Path) -> str:
    """Names, types, shapes and bytes of the arrays, whatever the metadata and the order in the file."""
    raw = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    header.pop("__metadata__", None)
    parts: list[bytes | str] = []
    for name in sorted(header):
        first, last = header[name]["data_offsets"]
        parts += [f"{name} {header[name]['dtype']} {header[name]['shape']}\n", raw[end + first : end + last]]
    return sha256(*parts)


def logged(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return canonical([{key: row[key] for key in LOGGED if key in row} for row in rows])


def results(folder: Path, new: Collection[str]) -> Hashes:
    """The numbers that `afloc score` or `afloc evaluate` wrote into a folder, but for those of the metrics `new`."""
    summary = without(json.loads((folder / "summary.json").read_text()), new)
    kept = ("n", "metrics", "baselines", "operating_points", "outcomes", "presence", "benchmarks",
            "confidence_saturated")  # fmt: skip
    hashes = {"metrics": canonical({key: summary[key] for key in kept if key in summary})}
    for path in sorted(folder.rglob("*.csv")):
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("metric") not in new]
        notes = [row.pop("note", "") for row in rows]
        hashes[str(path.relative_to(folder))] = canonical(rows)
        if any(notes):
            hashes[f"notes of {path.relative_to(folder)}"] = canonical(notes)
    return hashes


def without(content: Any, names: Collection[str]) -> Any:
    """JSON without the keys `names`, wherever they stand."""
    if isinstance(content, dict):
        return {key: without(value, names) for key, value in content.items() if key not in names}
    return [without(value, names) for value in content] if isinstance(content, list) else content


# Cases


def cases(tree: Tree, scratch: Path) -> dict[str, Callable[[], Hashes]]:
    made: dict[str, Callable[[], Hashes]] = {}
    demo = ("data.builder.train=1300", "data.builder.validation=64", "data.builder.test=0", "training.steps=40",
            "training.validate_every=20", "training.log_every=1", "evaluation.datasets=()")  # fmt: skip
    made["demo"] = partial(tree.train, "configs/demo.py", scratch / "demo", demo)
    for name, (devices, changes) in PUBLISHED.items():
        made[name] = partial(tree.train, tree.test_size, scratch / folder_of(name), changes, devices)
    for task in ("localization", "classification", "retrieval"):
        made[f"evaluate {task}"] = partial(evaluated, tree, scratch, task)
    made["localize"] = lambda: localized(tree, model_of(tree, scratch), scratch / "maps")
    files = tree.data / "score"
    write_score_files(files)
    for name, arguments in score_cases(files).items():
        made[name] = partial(scored, tree, arguments, scratch / folder_of(name))
    return made


def folder_of(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def model_of(tree: Tree, scratch: Path) -> Path:
    """The model of the first case, trained if that case did not run."""
    name, (devices, changes) = next(iter(PUBLISHED.items()))
    workdir = scratch / folder_of(name)
    if not (workdir / "model").is_dir():
        tree.train(tree.test_size, workdir, changes, devices)
    return workdir / "model"


def scored(tree: Tree, arguments: Iterable[str | Path], out: Path) -> Hashes:
    tree.call(["-m", "afloc_jax", "score", *arguments, "--out", out, "--bootstrap", "200"])
    return results(out, tree.new)


def evaluated(tree: Tree, scratch: Path, task: str) -> Hashes:
    builder = [f"--builder={setting}" for setting in ("train=80", "validation=16", "test=12", "seed=3")]
    out = scratch / f"evaluate_{task}"
    tree.call(
        ["-m", "afloc_jax", "evaluate", model_of(tree, scratch), "--dataset", "phantom", "--data",
         tree.data / "records", *builder, "--out", out, "--bootstrap", "100", "--task", task]
    )  # fmt: skip
    return results(out, tree.new)


def localized(tree: Tree, model: Path, out: Path) -> Hashes:
    image = tree.data / "image.png"
    drawn = np.random.default_rng(5).integers(0, 255, (90, 70), dtype=np.uint8)
    cv2.imwrite(str(image), cv2.GaussianBlur(drawn, (0, 0), 3))
    hashes = {}
    for kind, options in (("plain", ()), ("compatible", ("--map", "square", "--compatible"))):
        tree.call(["-m", "afloc_jax", "localize", model, image, "--prompt", "small left pleural effusion", "--prompt",
                   "enlarged heart", "--out", out / kind, *options])  # fmt: skip
        arrays = [np.load(path) for path in sorted((out / kind).glob("*.npy"))]
        hashes[kind] = sha256(*(f"{array.dtype}{array.shape}".encode() + array.tobytes() for array in arrays))
    table = out / "scores.csv"
    tree.call(["-m", "afloc_jax", "classify", model, image, "--class", "edema", "--class", "nodule", "--out", table])
    return {**hashes, "classify": sha256(table.read_text().replace(str(image), ""))}


# A run that an older tree began


def make_halfway(tree: Tree, folder: Path) -> None:
    """Leaves `workdir` (stopped, with a checkpoint), `model` (of the run that was not stopped) and `expected.json`."""
    folder.mkdir(parents=True)
    steps, first = HALFWAY
    changes = (f"training.steps={steps}", "training.validate_every=20", "training.checkpoint_every=20")
    with tempfile.TemporaryDirectory() as scratch:
        hashes = tree.train(tree.test_size, Path(scratch) / "whole", changes)
        shutil.copytree(Path(scratch) / "whole" / "model", folder / "model")
        hashes |= localized(tree, folder / "model", Path(scratch) / "maps")
    process = tree.start(tree.launch(tree.test_size, folder / "workdir", changes))
    log = folder / "workdir" / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < first):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    if process.returncode != 143:
        raise Failed(f"the run was not stopped half way (status {process.returncode}): {said[-2000:]}")
    (folder / "expected.json").write_text(json.dumps({"changes": changes, "hashes": hashes}, indent=2) + "\n")
    print(said.strip().splitlines()[-1])


def resumed(tree: Tree, folder: Path, scratch: Path) -> bool:
    """Whether the tree goes on with a copy of `folder` to the weights that it would have had, and reads its model."""
    expected = json.loads((folder / "expected.json").read_text())
    shutil.copytree(folder / "workdir", scratch / "workdir")
    shutil.copytree(folder / "model", scratch / "model")
    hashes = tree.train(tree.test_size, scratch / "workdir", expected["changes"])
    hashes |= localized(tree, scratch / "model", scratch / "maps")
    return not compare("resumed", hashes, expected["hashes"])


def compare(name: str, hashes: Hashes, wanted: Hashes) -> list[str]:
    """The parts that differ; prints a line of the case."""
    differ = [part for part in sorted({*hashes, *wanted}) if hashes.get(part) != wanted.get(part)]
    verdict = f"DIFFERS: {', '.join(differ)}" if differ else "same"
    print(f"{name:30s} {verdict}", flush=True)
    return differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="records and compiled programs; kept")
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="CHECKOUT", help="the code to run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the hashes")
    parser.add_argument("--against", type=Path, metavar="FILE", help="hashes of another tree, from --json")
    parser.add_argument(
        "--new", action="append", default=[], metavar="METRIC", help="one that --against lacks; ignored"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name contains the word")
    parser.add_argument("--halfway", type=Path, metavar="FOLDER", help="make a workdir that stopped half way, and stop")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a copy of what --halfway made")
    given = parser.parse_args()
    tree = Tree(given.tree, given.data, given.new)
    with tempfile.TemporaryDirectory() as scratch:
        if given.halfway:
            make_halfway(tree, given.halfway)
            return 0
        if given.resume:
            return 0 if resumed(tree, given.resume, Path(scratch)) else 1
        return run_cases(tree, Path(scratch), given)


def run_cases(tree: Tree, scratch: Path, given: argparse.Namespace) -> int:
    wanted = json.loads(given.against.read_text()) if given.against else None
    found: dict[str, Hashes] = {}
    wrong = False
    for name, work in cases(tree, scratch).items():
        if given.only not in name:
            continue
        started = time.monotonic()
        try:
            found[name] = work()
        except Failed as failure:
            wrong = True
            print(f"{name:30s} FAILED, {failure}", flush=True)
            continue
        shown = "  ".join(f"{part} {digest[:12]}" for part, digest in found[name].items())
        print(f"{name:30s} {time.monotonic() - started:5.1f} s  {shown}", flush=True)
        if wanted is not None:
            wrong |= bool(compare(name, found[name], wanted.get(name, {})))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
