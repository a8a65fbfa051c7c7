"""How long a run of the published size needs to save its state, and to restore it: what follows a signal to stop.

    python -m benchmarks.save_cost [--folder FOLDER] [--repeats 5]

The state is that of configs/afloc.py (ResNet-50, BERT-base, Adam) with random values, on one CPU device. A save ends
when the checkpoint is written, synced to the disk and sealed; a restore compares every hash. FOLDER is on the disk that
is measured. Prints bytes, medians and ranges.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from afloc_jax.training.assembly import assemble
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.mesh import build_mesh
from afloc_jax.training.settings import RunConfig
from configs.afloc import get_config


def drawn_state() -> dict:
    """A state of random values, under the names of a checkpoint."""
    config = RunConfig.from_config(get_config())
    like = assemble(config, build_mesh(jax.devices()[:1])).state_like().to_saved()
    rng = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(drawn, like)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="by default a temporary one")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    state = drawn_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"the state has {size / 2**30:.2f} GiB")
    times: dict[str, list[float]] = {"saved": [], "restored": []}
    for step in range(1, given.repeats + 1):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            saving = Checkpoints(folder, keep_best=0)
            began = time.perf_counter()
            saving.save(state, step, {}, None)
            saving.close()
            times["saved"].append(time.perf_counter() - began)
            began = time.perf_counter()
            assert Checkpoints(folder, keep_best=0).restore_last(state) is not None
            times["restored"].append(time.perf_counter() - began)
    for name, seconds in times.items():
        print(f"{name}: {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})")


if __name__ == "__main__":
    main()
