"""The bytes that the encoders' compiled forward and backward pass moves through a device's memory; needs no device.

    python -m benchmarks.encoder_bytes --topology v5e:4x4        (or h100:1; --json for one object)

Compiles both towers of --config for the topology, as a step of --pairs pairs a device has them, and adds up what each
instruction reads and writes: its operands and results in the device's main memory, with the padding of a TPU's tiles.
Instructions are summed by part of the model (a fusion belongs to the part of its last operation) and by kind: product,
sum, move (copy, transpose, padding, slice, change of type) or another pass over arrays. The largest moves are listed.

An operand of which only a part is read counts in full, scratch memory of libraries not at all. `compiler_bytes` is the
compiler's own count, which includes a TPU's VMEM, and which GPUs have not. Needs pip install "jax[tpu]" or
"jax[cuda13]".
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from afloc_jax.cli.arguments import setting
from afloc_jax.files import Path
from afloc_jax.training.topology import prepare_platform

if TYPE_CHECKING:
    from jax.stages import Compiled

    from afloc_jax.training.program_text import Instruction, Program

# The first expression found in an origin names the part.
PARTS = {
    "batch norm": r"backbone/.*?(?:bn\d?|norm\d?)/|center_",
    "blocks": r"backbone/(?:layer|denseblock)",
    "stem": r"backbone/",
    "projections": r"project_",
    "attention": r"bert/layer_\d+/(?:query|key|value|attention)",
    "MLP": r"bert/layer_\d+/",
    "embeddings": r"bert/",
    "words and sentences": r"text_encoder",
    "upsampling": r"image_encoder",
    "other": "",
}
KINDS = "product", "sum", "move", "pass"
_NOTHING = {"bitcast", "constant", "get-tuple-element", "optimization-barrier", "parameter", "tuple", "after-all"}
_MOVES = _NOTHING | {"copy", "transpose", "pad", "slice", "concatenate", "reshape", "broadcast", "convert"}
_PRODUCT = re.compile(r"\b(?:dot|convolution)\b|cublas|cudnn")
_SCRATCH = re.compile(r"[su]8\[\d*\](?:\{[^}]*\})?")  # of a product, with one axis


@dataclasses.dataclass(frozen=True)
class Moved:
    """The bytes of an instruction, over all its runs."""

    part: str
    kind: str
    result: str
    origin: str
    read: int
    written: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE")
    parser.add_argument("--config", type=Path, default=Path("configs/afloc.py"))
    parser.add_argument("--pairs", type=int, default=64, help="of a device")
    parser.add_argument("--set", action="append", type=setting, default=[], metavar="KEY=VALUE")
    parser.add_argument("--tower", choices=("both", "image", "text"), default="both", help="which is compiled")
    parser.add_argument("--most", type=int, default=10, help="how many moves are listed")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    prepare_platform(given.topology)  # before anything imports JAX
    from afloc_jax.training.launches import launches
    from afloc_jax.training.program_text import read

    compiled = encoders(given)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text and memory, "the compilers used here give both"
    program = read(text)
    moved = sorted(moves(program), key=lambda each: -each.read - each.written)
    report = {
        "topology": given.topology,
        "pairs": given.pairs,
        "tower": given.tower,
        "settings": dict(given.set),
        "temporary_bytes": memory.temp_size_in_bytes,
        "compiler_bytes": (compiled.cost_analysis() or {}).get("bytes accessed"),
        "launches": launches(program, lambda origin: 1),
        "rows": {
            name: _sum([each for each in moved if name in ("all", each.part, each.kind)])
            for name in ("all", *PARTS, *KINDS)
        },
        "largest_moves": [vars(each) for each in moved if each.kind == "move"][: given.most],
        "jax": version("jax"),
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(report) if given.json else _table(report))


def encoders(given: argparse.Namespace) -> "Compiled":
    """The towers asked for: embeddings, batch statistics, and the parameters' gradient for one of the embeddings."""
    import jax

    from afloc_jax.training.ahead_of_time import topology_devices
    from afloc_jax.training.assembly import assemble
    from afloc_jax.training.config import load
    from afloc_jax.training.gradients import build_encoder
    from afloc_jax.training.mesh import batch_sharding, build_mesh
    from afloc_jax.training.settings import RunConfig

    devices = topology_devices(given.topology)
    loaded = load(given.config, dict(given.set))
    loaded.training.batch_size = given.pairs * len(devices)
    config = RunConfig.from_config(loaded)
    assembly = assemble(config, build_mesh(devices, config.training.fsdp, one_group=config.one_group))
    encode, state, key = build_encoder(assembly.model, config, assembly.mesh), assembly.state_like(), jax.random.key(0)

    def asked(params, batch_stats, batch):
        embeddings, updated = encode(params, batch_stats, batch, key)
        image, text = embeddings[:3], embeddings[3:]
        if given.tower == "text":
            return text, None  # the image tower is then dead code, which the compiler leaves out
        return (image if given.tower == "image" else (image, text)), updated

    def towers(params, batch_stats, batch, d_embeddings):
        encoded = jax.vjp(lambda params: asked(params, batch_stats, batch), params, has_aux=True)
        embeddings, pull_back, updated = encoded
        return embeddings, updated, pull_back(d_embeddings)

    inputs = state.params, state.batch_stats, assembly.batch_like()
    placed = batch_sharding(assembly.mesh)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        jax.eval_shape(asked, *inputs)[0],
    )
    return jax.jit(towers).lower(*inputs, like).compile()


def moves(program: "Program", name: str = "", times: int = 1) -> Iterator[Moved]:
    """What the instructions of a computation (by default, of the entry) read and write, if it runs so many times."""
    from afloc_jax.training.buffers import memory_bytes

    instructions = program.computations.get(name or program.entry, [])
    sizes = {each.name: memory_bytes(_SCRATCH.sub("", each.result)) for each in instructions}
    for each in instructions:
        if each.operation in ("while", "call", "conditional"):
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', each.rest)
            for called in each.called:
                yield from moves(program, called, times * (int(trips[1]) if trips else 1))
        elif each.operation not in _NOTHING and not each.operation.endswith("-done"):
            read = sum(sizes.get(operand, 0) for operand in set(each.operands))
            written = sizes[each.name]
            if each.operation == "slice-start":  # a part of its operand, which its result names too, into VMEM
                read, written = memory_bytes(each.result, everywhere=True) - read, 0
            elif each.operation.endswith("-start"):
                written = max(written - read, 0)
            part = next(part for part, origin in PARTS.items() if re.search(origin, each.origin))
            yield Moved(part, _kind(program, each), each.result, each.origin, times * read, times * written)


def _kind(program: "Program", instruction: "Instruction") -> str:
    inside = {each.operation for name in instruction.called for each in program.computations.get(name, ())}
    operations = inside or {instruction.operation.removesuffix("-start")}
    if _PRODUCT.search(" ".join(operations)) or _PRODUCT.search(instruction.rest):
        return "product"
    return "sum" if "reduce" in operations else "move" if operations <= _MOVES else "pass"


def _sum(moved: list[Moved]) -> dict[str, int]:
    read, written = (sum(getattr(each, field) for each in moved) for field in ("read", "written"))
    return {"read": read, "written": written, "instructions": len(moved)}


def _table(report: dict) -> str:
    rows = [f"{'GB':20s} {'read':>8s} {'written':>8s}  instructions"]
    for name, row in report["rows"].items():
        rows.append(f"{name:20s} {row['read'] / 1e9:8.2f} {row['written'] / 1e9:8.2f}  {row['instructions']:6d}")
    for each in report["largest_moves"]:
        rows.append(
            f"{(each['read'] + each['written']) / 1e6:6.0f} MB {each['part']}: {each['result']} {each['origin']}"
        )
    said = {key: report[key] for key in ("temporary_bytes", "compiler_bytes", "launches")}
    return "\n".join([*rows, json.dumps(said)])


if __name__ == "__main__":
    main()
