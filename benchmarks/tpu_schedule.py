"""How busy the tiles of the loss keep a TPU's matrix units, by the static schedule of its compiler; needs no TPU.

    python -m benchmarks.tpu_schedule --topology v5e:4x4 --json

The TPU compiler estimates the cycles of each operation of a program. One line a part: a level's tile as the loss makes
it for TPUs (losses/tile_size.py; `images` x `units`), by XLA or by the Pallas kernels, forward, or both passes as in
the gradient pass, which computes the tile again. Softmax takes forward and both. Of the sigmoid objective
(losses/sigmoid.py) "both" is all there is: one visit, with what makes the gradient of similarities in it. It is counted
where --part asks for it (word/sigmoid/both, sentence/sigmoid/both).

    share = matrix_cycles / cycles
    matrix_cycles = 2 products valid_units images regions width / flop_per_cycle

with 2 products forward and 6 for both. Padding of regions, units and slots, and products with ones and zeros count as
nothing: `valid_units` is the mean over the bins that --captions captions fill, the last of which is rarely full. Their
lengths are those of --reports (see benchmarks/loss_tiled.py), or drawn about the means of docs/scale.md. Of a branch
(losses/tpu_tile.py) the usual side counts, which is the one taken where its condition holds.

Left out: waits for HBM, the loops around the tile and collectives. A part whose compiler dies, takes longer than
--seconds or leaves an operation without cycles, and a share above 95 %, which no schedule has, are "not counted". The
compiler's options are undocumented ones of libtpu 0.0.42. Needs pip install "jax[tpu]".
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.training.topology import prepare_platform
from benchmarks.gpu_loss import LEVELS

FLOP_PER_CYCLE = {"v5e": 131_072, "v6e": 524_288}  # of a core, in bfloat16 products
PRODUCTS = {"forward": 2, "both": 6}
LONGEST, SEED = 97, 0
HIGHEST_SHARE = 0.95
NOTHING = 3  # the exit status of a part that has no compiler, or no such topology: nor has any other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="of v5e or v6e, such as v5e:4x4")
    parser.add_argument("--captions", type=int, default=64, help="of a device; 64 on 16 chips at 1,024 pairs")
    parser.add_argument("--reports", type=Path, help="archive of reports, for their lengths")
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt, with --reports")
    parser.add_argument("--seconds", type=float, default=240, help="most time for one part")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parts = ["/".join(part) for part in itertools.product(LEVELS, ("xla", "pallas"), PRODUCTS)]
    parser.add_argument(
        "--part", choices=[*parts, *(f"{level}/sigmoid/both" for level in LEVELS)], help="this alone, in this process"
    )
    given = parser.parse_args()
    kind = given.topology.partition(":")[0]
    if kind not in FLOP_PER_CYCLE:
        parser.error(f"--topology {given.topology}: the FLOPs a cycle are known of {' and '.join(FLOP_PER_CYCLE)}")
    if (given.reports is None) != (given.vocabulary is None):
        parser.error("--reports and --vocabulary go together")
    try:
        prepare_platform(given.topology)
    except UserError as error:
        parser.error(str(error))
    if given.part:
        print(json.dumps(_count(given, *given.part.split("/"))))
        return
    for part in parts:
        row = _in_child(given, *part.split("/"))
        print(json.dumps(row) if given.json else _line(row), flush=True)


def _line(row: dict) -> str:
    what = f"{row['part']:16s} {row['pass']:8s}"
    if "not_counted" in row:
        return f"{what} not counted: {row['not_counted']}"
    tile = f"{row['images']} images x {row['units']} units ({row['valid_units']:.0f} valid)"
    return f"{what} {tile}: {row['matrix_cycles']:,} of {row['cycles']:,} cycles, {row['share']:.1%}"


def why(failed: subprocess.CompletedProcess[str]) -> str:
    """Why a process that compiled gave no result, in a line."""
    if failed.returncode < 0:
        return f"the compiler died of signal {-failed.returncode}"
    said = [line for line in failed.stderr.splitlines() if line.strip()] or ["nothing"]
    return said[-1][:200]


def _in_child(given: argparse.Namespace, level: str, implementation: str, which: str) -> dict:
    """The row of a part, from a process of its own: the compiler may abort or crash."""
    row = {"part": f"{level} {implementation}", "level": level, "implementation": implementation, "pass": which}
    command = [sys.executable, "-m", "benchmarks.tpu_schedule", "--part", f"{level}/{implementation}/{which}"]
    command += ["--topology", given.topology, "--captions", str(given.captions)]
    if given.reports:
        command += ["--reports", str(given.reports), "--vocabulary", str(given.vocabulary)]
    nothing = dict.fromkeys(("images", "units", "valid_units", "cycles", "matrix_cycles", "share"))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.seconds, check=False)
    except subprocess.TimeoutExpired:
        return row | nothing | {"not_counted": f"the compiler took more than {given.seconds:g} s"}
    if done.returncode == NOTHING:
        sys.exit(why(done))
    if done.returncode:
        return row | nothing | {"not_counted": why(done)}
    counted = json.loads(done.stdout.splitlines()[-1])
    if "not_counted" not in counted and counted["share"] > HIGHEST_SHARE:
        counted["not_counted"] = f"a share of {counted['share']:.0%} cannot be"
    return row | counted


def _count(given: argparse.Namespace, level: str, implementation: str, which: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_static_llo_profile_to={folder}/profile"
        import jax
        from jax.sharding import SingleDeviceSharding

        from afloc_jax.training.ahead_of_time import topology_devices

        try:
            sharding = SingleDeviceSharding(topology_devices(given.topology)[0])
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(NOTHING)
        make = {"xla": _xla_tile, "sigmoid": _sigmoid_tile, "pallas": _pallas_tile}[implementation]
        tile, arguments, size = make(level, which, _lengths(given, level))
        arguments = jax.tree.map(
            lambda like: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding), arguments
        )
        program = jax.jit(tile).lower(*arguments).compile().as_text()
        assert program, "the TPU compiler gives its program"
        found = [text.read_text() for text in Path(folder, "profile").glob("*")]
    estimated = re.findall(r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)', "\n".join(found))
    cycles, missing = cycles_of(program, {name: int(number) for name, number in estimated})
    regions, width = LEVELS[level][:2]
    flop = 2 * PRODUCTS[which] * size["valid_units"] * size["images"] * regions * width
    per_cycle = FLOP_PER_CYCLE[given.topology.partition(":")[0]]
    row = size | {
        "cycles": cycles,
        "matrix_cycles": round(flop / per_cycle),
        "share": flop / per_cycle / max(cycles, 1),
        "flop_per_cycle": per_cycle,
        "jax": version("jax"),
        "libtpu": version("libtpu"),
    }
    return row | ({"not_counted": f"no cycles for {missing}"} if missing else {})


def cycles_of(program: str, estimated: dict[str, int]) -> tuple[int, str | None]:
    """The cycles of a program's operations, and the name of one that is known to take some and has none.

    Args:
        program: the text of the compiled program. Of a conditional the computation for true counts.
        estimated: cycles by operation.
    """
    computations: dict[str, dict[str, str]] = {}
    name = ""
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = "ENTRY" if head[1] else head[2]
            computations[name] = {}
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
            computations[name][found[1]] = found[2]

    def kind(text: str) -> str:
        """What an operation computes, whatever its names. The compiler makes the second of two alike from the first."""
        called = re.search(r"calls=%?([\w.\-]+)", text)
        inside = "\n".join(sorted(computations[called[1]].values())) if called else ""
        return re.sub(
            r"%[\w.\-]+|metadata=\{[^}]*\}|, (backend_config|calls)=.*", "", f"{text.split(' fusion(')[0]} {inside}"
        )

    known = {
        kind(text): estimated[operation]
        for operations in computations.values()
        for operation, text in operations.items()
        if estimated.get(operation)
    }

    def total(name: str) -> tuple[int, str | None]:
        cycles, missing = 0, None
        for operation, text in computations[name].items():
            called = re.search(r"calls=%?([\w.\-]+)", text)
            inside = "\n".join(computations[called[1]].values()) if called else text
            mine = estimated.get(operation, 0)
            if not mine and re.search(r" (convolution|dot|while)\(|tpu_custom_call", inside):
                mine = known.get(kind(text), 0)
                missing = missing if mine else operation
            cycles += mine
            if branch := re.search(r"true_computation=%?([\w.\-]+)|branch_computations=\{[^}]*?%?([\w.\-]+)\}", text):
                more, unknown = total(branch[1] or branch[2])
                cycles, missing = cycles + more, missing or unknown
        return cycles, missing

    return total("ENTRY")


def _lengths(given: argparse.Namespace, level: str) -> list[int]:
    if given.reports:
        from benchmarks.loss_tiled import caption_lengths

        return caption_lengths(given.reports, given.vocabulary, given.captions)[level]
    _, _, mean, spread = LEVELS[level]
    drawn = np.random.default_rng(SEED).normal(mean, spread, given.captions)
    return np.clip(drawn.astype(int), 1, LONGEST).tolist()


def _valid_units(lengths: list[int], slots: int, slot: int) -> float:
    """The mean over the bins in use, as the loss packs these captions."""
    import jax
    import jax.numpy as jnp

    from afloc_jax.losses.packing import first_fit

    with jax.default_device(jax.devices("cpu")[0]):
        first_slot = first_fit(jnp.asarray(lengths, jnp.int32), LONGEST, slots, slot)
        return sum(lengths) / (int(first_slot.max()) // slots + 1)


def _xla_tile(level: str, which: str, lengths: list[int]) -> tuple[Callable, tuple, dict]:
    import jax
    import jax.numpy as jnp

    from afloc_jax.losses.region_pooling import Slots, TileImages, TileText
    from afloc_jax.losses.settings import PUBLISHED as settings
    from afloc_jax.losses.tile_size import slots_of_bin, tile_size
    from afloc_jax.losses.tpu_tile import pooling_for_tpu

    regions, width = LEVELS[level][:2]
    size = tile_size(settings, "tpu", len(lengths), regions, LONGEST)
    slots, slot = slots_of_bin(settings, "tpu", LONGEST)
    pooling, units = pooling_for_tpu(settings), slots * slot

    def like(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    filled = jax.eval_shape(size.filled_up, like(1, 1, size.images, regions, width, dtype="bfloat16"))
    images = TileImages(filled, like(1, 1, size.images, width), regions)
    which_slots = Slots(like(1, slots, slot, dtype="bool"), like(1, slots, slots, dtype="bool"))
    text = TileText(like(1, units, width, dtype="bfloat16"), like(1, units), which_slots)

    def forward(images, text):
        return pooling.relevance(images, text, settings)

    def both(images, text, d_r):
        r, saved = pooling.forward(images, text, settings)
        return r, pooling.backward(images, text, saved, d_r, settings)

    counted = {"images": size.images, "units": units, "valid_units": _valid_units(lengths, slots, slot)}
    if which == "forward":
        return forward, (images, text), counted
    return both, (images, text, like(1, 1, units, size.images)), counted


def _sigmoid_tile(level: str, which: str, lengths: list[int]) -> tuple[Callable, tuple, dict]:
    """The tile of `_xla_tile` in one visit: relevances, the gradient of similarities, and what is pulled back."""
    import jax
    import jax.numpy as jnp

    from afloc_jax.losses.definition import Scale
    from afloc_jax.losses.settings import PUBLISHED as settings
    from afloc_jax.losses.sigmoid import d_rows
    from afloc_jax.losses.tiles import d_relevance_in_visit
    from afloc_jax.losses.tpu_tile import pooling_for_tpu

    _, (images, text, like_r), counted = _xla_tile(level, "both", lengths)
    pooling, slots = pooling_for_tpu(settings), text.slots.valid.shape[1]

    def both(images, text, of_slots, log_temperature, bias):
        r, saved = pooling.forward(images, text, settings)
        gradient = d_relevance_in_visit(d_rows(Scale(log_temperature, bias), settings), pooling.slots_last, settings)
        return r, pooling.backward(images, text, saved, gradient(text.slots, r, of_slots), settings)

    number = jax.ShapeDtypeStruct((), jnp.float32)
    of_slots = jax.ShapeDtypeStruct((3, 1, 1, slots, like_r.shape[-1]), jnp.float32)
    return both, (images, text, of_slots, number, number), counted


def _pallas_tile(level: str, which: str, lengths: list[int]) -> tuple[Callable, tuple, dict]:
    """Several bins for several images, in one call: what the kernels keep in VMEM between bins is not read again."""
    import jax
    import jax.numpy as jnp

    from afloc_jax.losses.kernels import IMAGES, attention
    from afloc_jax.losses.kernels.tile import LANES, ROWS
    from afloc_jax.losses.packing import SLOT
    from afloc_jax.losses.settings import PUBLISHED as settings

    regions, width = LEVELS[level][:2]
    units, bins, slots = LANES, 4, LANES // SLOT

    def like(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    texts = like(1, bins, units, width, dtype="bfloat16"), like(1, bins, ROWS, units), like(1, bins, slots, slots)
    images, first = like(1, IMAGES, regions, width, dtype="bfloat16"), np.zeros((), np.int32)

    def forward(images, texts):
        text = attention.TileText(texts[0], texts[1], texts[2], bins)
        return attention.forward_call(images, text, jnp.asarray(first), IMAGES, settings, interpret=False)

    def both(images, texts, d_pooled, d_regions, d_units):
        text = attention.TileText(texts[0], texts[1], texts[2], bins)
        given = images, text, d_pooled, d_regions, d_units, jnp.asarray(first)
        return attention.backward_call(*given, settings, interpret=False)

    valid = _valid_units(lengths, slots, SLOT)
    counted = {"images": IMAGES, "units": bins * units, "valid_units": bins * valid}
    if which == "forward":
        return forward, (images, texts), counted
    d_units = like(attention.CORES, 1, bins, units, width)
    return both, (images, texts, like(1, IMAGES, bins, 1, units), images, d_units), counted


if __name__ == "__main__":
    main()
