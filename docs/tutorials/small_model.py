"""What the tutorials share: drawings in place of radiographs, and a model that has learnt for 20 steps.

Twenty steps are enough to see every command work, and far too few for a map that means anything.
"""

import csv
import subprocess
import sys
from pathlib import Path

from PIL import Image

from data_pipelines.builders.phantom.generate import generate

# A run of 20 steps of 16 pairs, and no evaluation.
SHORT = (
    "--config.training.steps=20",
    "--config.training.validate_every=20",
    "--config.training.batch_size=16",
    "--config.optimizer.warmup_steps=5",
    "--config.evaluation.datasets=()",
)


def draw_pairs(folder: Path, count: int = 200) -> Path:
    """Writes `count` drawings of chests with their reports as a folder of image-text pairs, and returns the folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        phantom = generate(0, "train", number)
        name = f"{number:04d}.png"
        Image.fromarray(phantom.image).save(folder / "images" / name)
        rows.append({"image": name, "text": ". ".join(phantom.sentences) + ".", "patient": f"drawing {number}"})
    write_table(folder / "pairs.csv", rows)
    return folder


def draw_masks(folder: Path, count: int = 40) -> Path:
    """Writes `count` other drawings with a mask per finding as a folder of the data set `masks`, and returns it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        phantom = generate(0, "test", number)
        name = f"{number:04d}.png"
        Image.fromarray(phantom.image).save(folder / "images" / name)
        for which, finding in enumerate(phantom.findings):
            mask = f"{number:04d}_{which}.png"
            Image.fromarray(finding.mask).save(folder / "masks" / mask)
            rows.append({"image": name, "mask": mask, "finding": finding.label})
    write_table(folder / "lesions.csv", rows)
    return folder


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes rows of the same columns as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def trained(workdir: Path = Path("runs/mine")) -> Path:
    """The model folder of a run of 20 steps in `workdir`, which is trained if it is not there."""
    if not (workdir / "finished.json").exists():
        pairs = draw_pairs(Path("chests"))
        command = [sys.executable, "-m", "afloc_jax", "train", "--config=pairs", f"--config.data.raw={pairs}"]
        subprocess.run([*command, f"--workdir={workdir}", *SHORT], check=True)
    return workdir / "model"
