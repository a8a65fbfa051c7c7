"""Peak memory of `afloc localize --windows N`, each in a process of its own.

    python -m benchmarks.windows_memory [runs/demo/model] [--windows 1 3 5]

The image is a film of 3000 x 2542 pixels of noise, with one prompt. Without a model the network is that of
configs/afloc.py with random weights. The peak is the largest resident set of the process, with Python and JAX in it.
"""

import argparse
import subprocess
import sys

MEASURED = """
import resource, sys
import numpy as np
from benchmarks.windows_memory import model_of
film = np.random.default_rng(0).integers(0, 256, (3000, 2542), dtype=np.uint8)
found = model_of(sys.argv[1]).localize([film], ["small nodule"], windows=int(sys.argv[2]))[0][0]
assert found.heatmap.shape == film.shape
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def model_of(folder: str):
    """The model of a folder, or of configs/afloc.py with random weights if it is empty."""
    from afloc_jax.inference.model import Model, load
    from afloc_jax.inference.towers import initial_variables
    from afloc_jax.models.settings import ModelSettings
    from afloc_jax.weights.config import FolderConfig
    from configs.afloc import get_config
    from data_pipelines.tokens import learn_tokenizer

    if folder:
        return load(folder)
    tokenizer, config = learn_tokenizer(["small nodule"]), get_config()
    config.model.text.bert.vocab_size = tokenizer.get_vocab_size()
    architecture = ModelSettings.read(config.model)
    return Model(FolderConfig(architecture=architecture), initial_variables(architecture, 0), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="", help="a model folder")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 3, 5], help="windows per side")
    given = parser.parse_args()
    for windows in given.windows:
        call = [sys.executable, "-c", MEASURED, given.model, str(windows)]
        peak = float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        print(f"{windows} x {windows} windows: {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
