"""Cold start: the time to load a model folder and localise one phrase in one image, compared with the torch export.

    python -m benchmarks.cold_start [--model runs/demo/model --image chest.png] [--prompt TEXT] [--repeats 7]

Without --model and --image a model of full size (ResNet-50, BERT-base) gets random weights, and a film of 2,500 x 3,000
pixels is drawn. Each measurement is a new process, from the image file and the text to the heat map of the square. The
sides alternate, so that other work on the machine affects all of them. Ours is measured twice: "first" compiles
everything, as the first process on a machine; "later" reads compiled programs from the cache (`afloc_jax.compiled`), as
later commands do. The program prints the median and range of wall and CPU seconds, ratios within each round, and one
JSON line. Files are cached by a run of each side before.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from afloc_jax.export.write import export_model
from benchmarks.full_size import write_films, write_model

OURS = """
import sys, afloc_jax, afloc_jax.compiled
afloc_jax.compiled.keep_compiled()
model, image, prompt = sys.argv[1:]
print(afloc_jax.load(model).localize([image], [prompt])[0][0].square.max())
"""
TORCH = """
import sys
sys.path.insert(0, sys.argv[1])
import afloc_inputs, afloc_torch, torch
folder, image, prompt = sys.argv[1:]
inputs = afloc_inputs.read(folder, [image], [prompt])
with torch.inference_mode():
    print(afloc_torch.load(folder)(**{k: torch.from_numpy(v) for k, v in inputs.items()}).heatmap.max().item())
"""


def measure(code: str, folder: Path, image: Path, prompt: str, environment: dict[str, str]) -> tuple[float, float]:
    """The wall and CPU seconds of a new process, with its imports."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", code, str(folder), str(image), prompt]
    subprocess.run(command, check=True, env=os.environ | environment, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder (default: full size, random weights)")
    parser.add_argument("--image", type=Path, help="a picture (default: a drawn film)")
    parser.add_argument("--prompt", default="small left pleural effusion")
    parser.add_argument("--repeats", type=int, default=7, help="fresh processes of each (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = given.model or write_model(Path(directory) / "model")
        image = given.image or write_films(Path(directory) / "films", 1)[0]
        export = export_model(model, Path(directory) / "torch", "torch-module")
        common = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "JAX_PLATFORMS": "cpu"}
        sides = {
            "first": (OURS, model, common | {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
            "later": (OURS, model, common | {"XDG_CACHE_HOME": directory}),
            "torch": (TORCH, export, common),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for repeat in range(given.repeats + 1):
            for name, (code, folder, environment) in sides.items():
                measured = measure(code, folder, image, given.prompt, environment)
                if repeat:  # before that, files come into memory and programs into the cache
                    seconds[name].append(measured)
    result: dict[str, float] = {}
    for name, runs in seconds.items():
        wall, cpu = (sorted(run[kind] for run in runs) for kind in (0, 1))
        result[name], result[f"{name}_cpu"] = statistics.median(wall), statistics.median(cpu)
        print(
            f"{name:10s} wall {result[name]:6.2f} s ({wall[0]:.2f} to {wall[-1]:.2f})   "
            f"CPU {result[f'{name}_cpu']:6.2f} s ({cpu[0]:.2f} to {cpu[-1]:.2f})"
        )
    for name in ("first", "later"):  # within each round, because other work on the machine comes and goes
        ratios = [own[0] / torch[0] for own, torch in zip(seconds[name], seconds["torch"], strict=True)]
        result[f"{name} / torch"] = statistics.median(ratios)
        print(f"{name} / torch {result[f'{name} / torch']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
