"""The files and folders that four commands enter, for an image, a pair, a config and a truth file.

    python -m benchmarks.walks [--repository CHECKOUT] [--json FILE]

image     `afloc localize`: from a PNG to a heat map
pair      `launch.py`: from a folder of images and reports to two steps of training
config    `launch.py --dry_run`: from a config file to a traced step
truth     `afloc score`: from a truth file and heat maps to scores

Each command runs at a tiny size in a process of its own, with a profiler that notes the file of every function called
(imports excluded). A room is a folder. A change of room is a call from a function of one room to one of another. Only
public commands are used, so any checkout can be measured; by default it is this one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("afloc_jax", "data_pipelines", "configs", "launch.py")
TINY = (
    "--config=configs/afloc.py",
    "--config.data.builder={'image_size':32}",
    "--config.data.max_tokens=16",
    "--config.model.projection_dim=32",
    "--config.model.text.bert={'hidden_size':32,'num_hidden_layers':4,'num_attention_heads':2,'intermediate_size':64}",
    "--config.model.image.backbone=resnet18",
    "--config.model.image.input_size=32",
    "--config.training.batch_size=4",
    "--config.training.steps=2",
    "--config.training.precision=float32",
)

# Runs in the walk's own process: argv is the file for the answer, then the command.
_WALK = """
import json, os, runpy, sys, threading
out, root, command = sys.argv[1], os.getcwd() + os.sep, sys.argv[2:]
files, changes, last = set(), [0], threading.local()
def note(frame, event, argument):
    if event != "call":
        return
    code = frame.f_code
    if not code.co_filename.startswith(root) or code.co_name == "<module>" or code.co_flags & 0x2 == 0:
        return
    name = code.co_filename[len(root):]
    files.add(name)
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(root):
        caller = caller.f_back
    if caller is not None:
        before = os.path.dirname(caller.f_code.co_filename[len(root):])
        changes[0] += before != os.path.dirname(name)
sys.path.insert(0, root)
sys.argv = command
threading.setprofile(note)
sys.setprofile(note)
status = 0
try:
    if command[0] == "afloc":
        from afloc_jax.cli import main
        status = main(command[1:])
    else:
        runpy.run_path(command[0], run_name="__main__")
except SystemExit as end:
    status = end.code or 0
finally:
    sys.setprofile(None)
    threading.setprofile(None)
json.dump({"status": status, "files": sorted(files), "changes": changes[0]}, open(out, "w"))
"""


def walk(repository: Path, command: list[str]) -> dict:
    """The files entered by a command, in a process of its own. Raises RuntimeError if the command fails."""
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        run = subprocess.run(
            [sys.executable, "-c", _WALK, answer.name, *command],
            cwd=repository, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = json.loads(Path(answer.name).read_text() or "{}")
    if found.get("status") != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{run.stderr[-2000:]}")
    found["files"] = [name for name in found["files"] if name.startswith(PARTS)]
    found["rooms"] = sorted({os.path.dirname(name) or name for name in found["files"]})
    return found


def make_pairs(folder: Path, count: int = 64) -> None:
    """Writes a raw folder of small images and a table of reports."""
    random = np.random.default_rng(0)
    rows = ["image,text"]
    for number in range(count):
        Image.fromarray(random.integers(0, 255, (40, 36), dtype=np.uint8)).save(folder / f"{number}.png")
        side = ("left", "right")[number % 2]
        rows.append(
            f"{number}.png,Small {side} effusion number {number}. The heart is normal in size. No pneumothorax."
        )
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")


def make_truth(folder: Path) -> None:
    """Writes a COCO truth file of two boxes, and a heat map for each."""
    images = [{"id": n, "path": f"{n}.png", "width": 224, "height": 224} for n in (1, 2)]
    boxes = [
        {"id": n, "image_id": n, "bbox": [40, 40, 80, 60], "category_id": 1, "label_text": "effusion"} for n in (1, 2)
    ]
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "effusion"}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    random = np.random.default_rng(0)
    maps: dict[str, Any] = {f"{n}.png\teffusion": random.random((224, 224)).astype(np.float32) for n in (1, 2)}
    np.savez(folder / "maps.npz", **maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="checkout to walk through")
    parser.add_argument("--json", type=Path, help="file for the lists of files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw"
        raw.mkdir()
        make_pairs(raw)
        make_truth(folder)
        training = ["launch.py", *TINY, f"--config.data.raw={raw}", f"--config.data.directory={folder}/data"]
        training += [f"--workdir={folder}/run"]
        localize = ["afloc", "localize", f"{folder}/run/model", f"{raw}/0.png", "--prompt", "left effusion"]
        score = ["afloc", "score", "--truth", f"{folder}/truth.json", "--heatmaps", f"{folder}/maps.npz"]
        walks = {
            "config": [*training, "--dry_run"],
            "pair": training,
            "image": [*localize, "--out", f"{folder}/out"],
            "truth": [*score, "--out", f"{folder}/scores"],
        }
        found = {walked: walk(arguments.repository.resolve(), command) for walked, command in walks.items()}
    for walked, entered in found.items():
        counts = f"{len(entered['rooms']):3d} rooms {len(entered['files']):4d} files"
        print(f"{walked:8s} {counts} {entered['changes']:7d} changes of room")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
