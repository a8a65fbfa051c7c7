"""The kernels of `loss.kernel = "triton"`, and the loss that they are part of, compiled for a GPU that is not at hand.

    python -m benchmarks.gpu_kernel --topology h100:1

Value and gradients of the word level of `--images` pairs, in bfloat16. Prints JSON lines: one for each kernel
(registers of a thread, bytes of spills by ptxas, shared memory of a block, and how many blocks of it fit a core), then
one for each implementation: tile, launches with captions of 36 words, temporary bytes. Needs pip install "jax[cuda13]",
whose ptxas it takes, and no GPU.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from afloc_jax.training.gpu_cards import CARDS, Card
from afloc_jax.training.topology import prepare_platform

REGISTERS = 65536  # of a core
MEAN_WORDS = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="h100:1", metavar="KIND:1")
    parser.add_argument("--kernel", nargs="+", choices=("xla", "triton"), default=["triton", "xla"])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--regions", type=int, default=1444)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--units", type=int, default=97)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--block", type=int, default=128, help="regions of a kernel's block, against a bin's units")
    given = parser.parse_args()
    facts = {"date": datetime.now(UTC).date().isoformat(), "jax": version("jax")}
    with tempfile.TemporaryDirectory() as folder:
        prepare_platform(given.topology)  # before anything imports JAX
        os.environ["XLA_FLAGS"] += f" --xla_dump_to={folder} --xla_dump_emitter_re=.*"
        for kernel in given.kernel:
            loss = compiled_loss(given, kernel)
            for found in kernels(Path(folder), CARDS[given.topology.partition(":")[0]]) if kernel == "triton" else []:
                print(json.dumps(found | facts), flush=True)
            print(json.dumps(vars(given) | loss | facts), flush=True)


def compiled_loss(given: argparse.Namespace, kernel: Literal["xla", "triton"]) -> dict[str, object]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

    from afloc_jax.losses.kernels import triton
    from afloc_jax.losses.packing import SLOT
    from afloc_jax.losses.settings import LossSettings
    from afloc_jax.losses.tile_size import tile_size, tile_units
    from afloc_jax.losses.tiled import grouped_similarity
    from afloc_jax.training import ahead_of_time
    from afloc_jax.training.launches import launches
    from afloc_jax.training.program_text import read

    settings = LossSettings(kernel=kernel)
    triton.BLOCK = given.block * tile_units(settings, "gpu", given.units)
    mesh = Mesh(np.array(ahead_of_time.topology_devices(given.topology)[:1]), ("card",))
    sharding = NamedSharding(mesh, PartitionSpec())

    def total(regions, units, norms, counts):
        groups = regions[None], units[None], counts[None]
        return grouped_similarity(*groups, settings, norms[None], devices=1, platform="gpu").sum()

    def like(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct((given.images, *shape), jnp.dtype(dtype), sharding=sharding)

    inputs = like(given.regions, given.width, dtype=given.precision), like(given.units, given.width), like(given.units)
    with use_abstract_mesh(mesh.abstract_mesh):  # from it newer JAX takes the kind of card
        compiled = jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(*inputs, like(dtype="int32")).compile()
    memory, program = compiled.memory_analysis(), compiled.as_text()
    assert memory and program, "the GPU compiler gives both"
    tile = tile_size(settings, "gpu", given.images, given.regions, given.units)
    tiles = -(-given.images * -(-MEAN_WORDS // SLOT) // (tile.bins * tile.units // SLOT))
    return {
        "kernel": kernel,
        "tile": [tile.images, tile.bins * tile.units],
        "launches": round(launches(read(program), lambda _: tiles)),
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def kernels(folder: Path, card: Card) -> list[dict[str, object]]:
    """What ptxas and XLA say of each of our kernels in a folder of `--xla_dump_to`."""
    wheels = (str(path) for entry in sys.path for path in Path(entry).glob("nvidia/*/bin/ptxas"))
    ptxas = next(wheels, shutil.which("ptxas"))
    if ptxas is None:
        sys.exit('no ptxas: pip install "jax[cuda13]"')
    launched = re.findall(
        r"(local_\w+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), .*shared_memory: (\d+) bytes",
        "".join(path.read_text() for path in folder.glob("*thunk_sequence.txt")),
    )
    found = []
    for path in folder.glob("*.ptx"):
        text = path.read_text()
        entry = re.search(r"\.entry (local_\w+)", text)
        if not entry:
            continue
        target = re.search(r"\.target (\w+)", text)
        assert target
        command = [ptxas, "-v", f"-arch={target[1]}", str(path), "-o", str(folder / "kernel.cubin")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers, stores, loads = (
            int(re.findall(pattern, said)[-1])
            for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
        )
        name, *grid, threads, shared = next(each for each in launched if each[0] == entry[1])
        fit = min(REGISTERS // (-(-registers // 8) * 8 * int(threads)), card.shared_memory_per_core // int(shared))
        found.append(
            {
                "kernel": name,
                "grid": [int(size) for size in grid],  # bins, blocks of regions, images
                "threads": int(threads),
                "registers": registers,
                "spill_stores": stores,
                "spill_loads": loads,
                "shared_bytes": int(shared),
                "shared_bytes_allowed": card.shared_memory_per_block,
                "blocks_a_core": fit,
                "target": target[1],
            }
        )
    return sorted(found, key=lambda each: str(each["kernel"]))


if __name__ == "__main__":
    main()
