"""The time of scoring a data set of MS-CXR's size on one core.

    python -m benchmarks.scoring [--samples 1162]

The program draws boxes and maps of 224 x 224, writes them as truth and heat map files, and runs `afloc score` (five
thresholds, 1,000 resamples) in a process bound to one core. It prints the seconds from start to exit, with files and
imports, and one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

CATEGORIES = 8  # as MS-CXR has
HEIGHT, WIDTH = 3056, 2544  # a common size of MIMIC-CXR


def write_inputs(folder: Path, samples: int) -> None:
    """Writes truth.json and maps.npz, with one box and one noise map per sample."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    maps: dict[str, Any] = {}
    for n in range(samples):
        path = f"files/{n}.jpg"
        images.append({"id": n, "path": path, "height": HEIGHT, "width": WIDTH})
        width, height = (int(side) for side in rng.integers(200, 1200, 2))
        x, y = int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - height))
        box = [x, y, width, height]
        annotations.append({"id": n, "image_id": n, "category_id": n % CATEGORIES, "bbox": box, "label_text": "p"})
        maps[f"{path}\tp"] = rng.standard_normal((224, 224)).astype(np.float32)
    categories = [{"id": k, "name": f"finding {k}"} for k in range(CATEGORIES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    np.savez(folder / "maps.npz", **maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1162, help="default: %(default)s, as many as MS-CXR has")
    parser.add_argument("--repeats", type=int, default=3, help="runs (default: %(default)s)")
    given = parser.parse_args()
    seconds = []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_inputs(folder, given.samples)
        command: list[str | Path] = ["taskset", "-c", "0", sys.executable, "-m", "afloc_jax", "score"]
        command += ["--truth", folder / "truth.json", "--heatmaps", folder / "maps.npz", "--out", folder / "out"]
        for _ in range(given.repeats):
            start = time.perf_counter()
            subprocess.run(command, check=True)
            seconds.append(time.perf_counter() - start)
        summary = json.loads((folder / "out" / "summary.json").read_text())
    thresholds, resamples = len(summary["thresholds"]), summary["bootstrap"]["resamples"]
    print(
        f"{summary['n']} samples, {thresholds} thresholds, {resamples} resamples: {np.median(seconds):.1f} s (median)"
    )
    result = {"samples": summary["n"], "seconds": seconds, "numpy": np.__version__, "jax": jax.__version__}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
