"""Memory of one chip for the local loss of its pairs, by kernels or by XLA, compiled for a TPU that is not at hand.

    python -m benchmarks.loss_kernels --topology v5e:4x4 --kernel pallas --regions 1444 --width 512

Value and gradients of the summed similarities of `--images` images with as many captions; prints one JSON line:
temporary and argument bytes, and the kernel calls in the program. The compiler's counts of FLOPs and bytes are not
compared: it counts a loop's body once where XLA loops over tiles, and takes a kernel's own word for all of its tiles.
Needs pip install "jax[tpu]", no TPU.
"""

import argparse
import json
from datetime import UTC, datetime
from importlib.metadata import version

from afloc_jax.training.topology import prepare_platform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE")
    parser.add_argument("--kernel", choices=("xla", "pallas"), required=True)
    parser.add_argument("--regions", type=int, default=1444)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--units", type=int, default=97)
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    given = parser.parse_args()
    prepare_platform(given.topology)  # before anything imports JAX
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from afloc_jax.losses.settings import LossSettings
    from afloc_jax.losses.tiled import grouped_similarity
    from afloc_jax.training import ahead_of_time

    settings = LossSettings(kernel=given.kernel)
    sharding = SingleDeviceSharding(ahead_of_time.topology_devices(given.topology)[0])

    def total(regions, units, counts):
        return grouped_similarity(regions[None], units[None], counts[None], settings, devices=1).sum()

    def like(*shape, dtype=given.precision):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    images = given.images
    inputs = like(images, given.regions, given.width), like(images, given.units, given.width)
    compiled = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*inputs, like(images, dtype="int32")).compile()
    memory, program = compiled.memory_analysis(), compiled.as_text()
    assert memory and program, "the TPU compiler gives both"
    result = {
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "kernels": program.count('custom_call_target="tpu_custom_call"'),
        "jax": version("jax"),
        "libtpu": version("libtpu"),
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(vars(given) | result))


if __name__ == "__main__":
    main()
