"""The training step compiled for devices that are not at hand, to see whether a run fits their memory.

TPU topologies are compiled by the TPU compiler of `jax[tpu]`, which needs no TPU, those of GPUs by the compiler of
`jax[cuda13]`, which needs no GPU. `cpu:N` is compiled by the CPU compiler of this machine, split over N devices. The
program is the one that launch.py would run: the same model, loss, optimiser and shardings. Call
`topology.prepare_platform` before importing JAX, and so before importing this module.
"""

import bisect
import contextlib
import dataclasses
import functools
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.stages import Lowered
from jaxtyping import Array, PyTree

from afloc_jax.errors import UsageError, UserError
from afloc_jax.losses import contrastive_losses
from afloc_jax.losses.ring import fits_around
from afloc_jax.losses.tile_size import slots_of_bin, tile_size
from afloc_jax.settings import Json
from afloc_jax.training.assembly import Assembly, assemble
from afloc_jax.training.buffers import Buffer, largest_buffers
from afloc_jax.training.gpu_cards import CARDS
from afloc_jax.training.launches import launches
from afloc_jax.training.mesh import batch_sharding, build_mesh, replicated
from afloc_jax.training.permutes import RingPermutes, ring_permutes
from afloc_jax.training.program_text import Program, read
from afloc_jax.training.settings import LowRank, RunConfig
from afloc_jax.training.topology import chips_of_host, hosts_and_cards
from afloc_jax.training.xla_flags import GPU_PLUGINS

Part = Literal["step", "loss"]

GIB = 2**30
# The memory of a device that programs may use, as the errors of libtpu 0.0.42's compiler state it. JAX sees a v4 chip
# as two devices with half of its memory each: "chip" here means one of them.
HBM_BYTES = {"v5e": int(15.75 * GIB), "v6e": int(31.25 * GIB), "v5p": int(95.74 * GIB), "v4": int(15.25 * GIB)}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_COLLECTIVE = re.compile(rf" ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
_KERNEL = re.compile(r" custom-call\(.*custom_call_target=\"tpu_custom_call\"")
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMG]) of [\d.]+[KMG] hbm|\(([\d.]+)([KMG])\) exceeds available HBM")
_BYTES = {"K": 2**10, "M": 2**20, "G": GIB}
RESOLUTION = 1 / 32  # the relative precision of the search for the largest batch


# Words and sentences of a caption, for the loops over bins: the assumption of docs/scale.md, not a measurement.
MEAN_UNITS = {"word": 36, "sentence": 6}


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a device computes at once of a local level.

    `bins` is how many tiles `images` images need for all captions that come by at once, if each has `mean_units` units.
    """

    images: int
    units: int
    mean_units: int
    bins: int


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """The memory and work of a compiled program on each chip.

    A program that does not fit is not compiled: fields that would be read from it are then None or empty.

    Attributes:
        limit_bytes_per_chip: None for cpu, which has no limit.
        flops_per_chip, bytes_accessed_per_chip: as the compiler counts them. It counts the body of a loop once, and
            takes the numbers of a kernel from the kernel's own cost estimate.
        collectives: name -> number of instructions in the program; one inside a loop counts once.
        ring_permutes: see permutes.py.
        kernels: number of instructions that call a Pallas kernel; one inside a loop counts once.
        largest_buffers: see buffers.py.
        tiles: of the word and the sentence level (losses/tile_size.py); empty where there are none.
        low_rank: whether the word level is computed in the width of the shallow features, and why.
        launches_per_step: on GPUs, the kernels, copies and collectives that a step starts, loops multiplied out. Loops
            over bins of captions are counted at the mean length that `tiles` states.
    """

    topology: str
    part: Part
    chips: int
    global_batch: int
    limit_bytes_per_chip: int | None
    fits: bool
    peak_bytes_per_chip: int
    argument_bytes_per_chip: int | None = None
    temporary_bytes_per_chip: int | None = None
    flops_per_chip: float | None = None
    bytes_accessed_per_chip: float | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    ring_permutes: RingPermutes | None = None
    kernels: int | None = None
    largest_buffers: Sequence[Buffer] = ()
    tiles: dict[str, Tile] = dataclasses.field(default_factory=dict)
    low_rank: LowRank | None = None
    launches_per_step: int | None = None

    def to_json(self) -> dict[str, Json]:
        """The report as `afloc compile --json` prints it."""
        return {
            **vars(self),
            "ring_permutes": vars(self.ring_permutes) if self.ring_permutes else None,
            "largest_buffers": [buffer.to_json() for buffer in self.largest_buffers],
            "tiles": {level: vars(tile) for level, tile in self.tiles.items()},
            "low_rank": None if self.low_rank is None else vars(self.low_rank),
        }


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The report on the largest global batch that fits, or on the smallest allowed one where none fits.

    `too_large` is the smallest batch tried that does not fit, or None where the largest allowed one fits.
    """

    report: MemoryReport
    too_large: int | None

    def to_json(self) -> dict[str, Json]:
        """The report as `afloc compile --largest --json` prints it."""
        return {**self.report.to_json(), "too_large": self.too_large}


def topology_devices(topology: str) -> list[jax.Device]:
    """The devices of a topology; they need not exist.

    Raises:
        UserError: the topology's compiler is missing or does not start.
        UsageError: it knows no such topology.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < int(shape):
            raise UserError(f"--topology {topology}: JAX started with {len(devices)} devices; use a new process")
        return devices[: int(shape)]
    card = CARDS.get(kind)
    needed, extra, packages = ("GPU", "cuda13", GPU_PLUGINS) if card else ("TPU", "tpu", ("libtpu",))
    try:
        if card:
            shape = hosts_and_cards(topology)
            found = topologies.get_topology_desc(platform="cuda", topology=shape, target_config=card.description())
        else:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=topology, chips_per_host_bounds=chips_of_host(topology)
            )
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        if not any(map(importlib.util.find_spec, packages)):
            raise UserError(
                f'--topology {topology}: there is no {needed} compiler; it comes with pip install "jax[{extra}]" and '
                f"needs no {needed}"
            ) from error
        if first.startswith("INVALID_ARGUMENT"):
            raise UsageError(f"--topology {topology}: no such topology ({first})") from error
        raise UserError(f"--topology {topology}: the {needed} compiler does not start ({first})") from error
    return list(found.devices)


def memory_limit(topology: str) -> int | None:
    """The bytes of a device that programs may use; None for cpu."""
    kind = topology.partition(":")[0]
    return CARDS[kind].usable() if kind in CARDS else HBM_BYTES.get(kind)


def compile_step(config: RunConfig, topology: str, part: Part = "step") -> MemoryReport:
    """Compiles the training step of `config`, or its losses alone, and reports what it needs.

    Args:
        config: the config that launch.py would run. The vocabulary size is `model.text.bert.vocab_size`, or BERT's.
        topology: the one passed to `prepare_platform`.
        part: "step" for the training step, "loss" for the losses and their gradients with respect to embeddings.

    Raises:
        UserError: the batch does not divide over the chips, the compiler fails for another reason than memory, or the
            environment names no fraction of a card.
    """
    limit = memory_limit(topology)
    devices, batch = topology_devices(topology), config.training.batch_size
    if batch % len(devices):
        raise UsageError(f"a global batch of {batch} does not divide over {len(devices)} chips")
    config.check_batch(len(devices))
    assembly = assemble(config, build_mesh(devices, config.training.fsdp, one_group=config.one_group))
    tiles = tiles_of_levels(assembly)
    report = functools.partial(
        MemoryReport, topology, part, len(devices), batch, limit, tiles=tiles, low_rank=assembly.low_rank
    )
    try:
        compiled = _lower(assembly, part).compile()
    except UserError:  # a wrong setting, named by the code that it belongs to
        raise
    except Exception as error:
        if not (used := _USED.search(str(error))):
            raise UserError(f"the compiler refused: {(str(error).splitlines() or [''])[0]}") from error
        needed = int(float(used[1] or used[3]) * _BYTES[used[2] or used[4]])
        return report(fits=False, peak_bytes_per_chip=needed)
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
    assert memory is not None and text is not None  # all compilers used here give both
    program = read(text)
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    # Donated arguments share their memory with outputs (`alias`); the other outputs need memory of their own.
    peak = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return report(
        fits=limit is None or peak <= limit,
        peak_bytes_per_chip=peak,
        argument_bytes_per_chip=arguments,
        temporary_bytes_per_chip=temporary,
        flops_per_chip=cost.get("flops"),
        bytes_accessed_per_chip=cost.get("bytes accessed"),
        collectives=dict(Counter(_COLLECTIVE.findall(text))),
        ring_permutes=ring_permutes(program),
        kernels=len(_KERNEL.findall(text)),
        largest_buffers=largest_buffers(program),
        launches_per_step=_launches(program, tiles) if topology.partition(":")[0] in CARDS else None,
    )


def largest_batch(config: RunConfig, topology: str, part: Part = "step") -> LargestBatch:
    """The largest global batch that fits, by doubling and then bisection, to a precision of 1/32.

    Only `allowed_batches` are tried. The search assumes that a smaller batch fits wherever a larger one does.

    Raises:
        UsageError: the topology has no memory limit, or the settings allow no batch.
        UserError: see `compile_step`.
    """
    if memory_limit(topology) is None:
        raise UsageError(
            f"--topology {topology}: has no limit that a batch could be too large for; give --global_batch"
        )

    def compiled(batch: int) -> MemoryReport:
        training = dataclasses.replace(config.training, batch_size=batch)
        return compile_step(dataclasses.replace(config, training=training), topology, part)

    batches = allowed_batches(config, len(topology_devices(topology)))
    best = compiled(batches[0])
    if not best.fits:
        return LargestBatch(best, batches[0])
    low, high = 0, len(batches)  # indices into `batches`: the largest known to fit, the smallest known not to fit
    while high - low > 1 and (high == len(batches) or batches[high] - batches[low] > RESOLUTION * batches[low]):
        doubled = min(bisect.bisect_left(batches, 2 * batches[low]), len(batches) - 1)
        place = doubled if high == len(batches) else (low + high) // 2
        report = compiled(batches[place])
        if report.fits:
            best, low = report, place
        else:
            high = place
    return LargestBatch(best, batches[high] if high < len(batches) else None)


def allowed_batches(config: RunConfig, chips: int, most: int = 2**20) -> list[int]:
    """The global batches of 2 to `most` pairs that `config` allows on so many chips, in ascending order.

    They divide over the chips, and into contrast groups, groups of batch statistics and micro batches. Raises
    UsageError where there is none.
    """
    loss, group = config.loss, config.loss.contrast_group
    parts = (chips, group, config.model.image.statistics_group, config.training.micro_batch)
    step = math.lcm(*(number or 1 for number in parts))
    batches = [batch for batch in range(step, most + 1, step) if batch > 1]
    if group and loss.contrast_unit == "caption" and loss.implementation in ("auto", "ring"):
        batches = [batch for batch in batches if fits_around(group, batch // chips)]
    if not batches:
        raise UsageError(
            f"no global batch of up to {most} pairs divides over {chips} chips, loss.contrast_group, "
            "model.image.statistics_group and training.micro_batch alike; change one of them"
        )
    return batches


def tiles_of_levels(assembly: Assembly) -> dict[str, Tile]:
    """The tiles of the local levels; empty where the loss is not computed in tiles of XLA's."""
    loss, mesh = assembly.config.loss, assembly.mesh
    if loss.kernel == "pallas" or loss.contrast_unit == "unit" or loss.implementation == "definition":
        return {}
    image, text = assembly.embeddings_like()
    here = min(assembly.config.training.batch_size // mesh.size, loss.contrast_group or len(text.report))
    platform = mesh.devices.flat[0].platform
    of_words = image.deep if loss.word_map == "deep" else image.shallow
    shapes = {"word": (of_words, text.words), "sentence": (image.deep, text.sentences)}
    found = {}
    for level, (regions, units) in shapes.items():
        size = tile_size(loss, platform, here, math.prod(regions.shape[1:-1]), units.shape[1])
        (slots, slot), length = slots_of_bin(loss, platform, units.shape[1]), MEAN_UNITS[level]
        slots *= size.bins
        found[level] = Tile(size.images, slots * slot, length, -(-here * -(-length // slot) // slots))
    return found


def _launches(program: Program, tiles: dict[str, Tile]) -> int:
    """Loops over bins, the only ones of unknown length, are taken to run as often as captions of mean length need."""
    return round(launches(program, lambda origin: next((t.bins for level, t in tiles.items() if level in origin), 1)))


def _lower(assembly: Assembly, part: Part) -> Lowered:
    # From 0.11 on JAX takes the kind of card for Triton's kernels from a mesh in context. A ring brings its own.
    alone = assembly.config.loss.kernel == "triton" and assembly.mesh.size == 1
    with jax.sharding.use_abstract_mesh(assembly.mesh.abstract_mesh) if alone else contextlib.nullcontext():
        return assembly.lower() if part == "step" else _lower_loss(assembly)


def _lower_loss(assembly: Assembly) -> Lowered:
    """The losses and their gradients, as a function of embeddings of the shapes that the model returns."""
    settings, mesh = assembly.config.loss, assembly.mesh
    image: PyTree
    image, text = assembly.embeddings_like()
    if settings.is_low_rank:  # the loss reads the factors of the shallow map; a run never computes the map itself
        image = image.replace(shallow=None)
    leaves, tree = jax.tree.flatten((image, text))
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def value(differentiable: list[Array], counts: list[Array]) -> Array:
        given, rest = iter(differentiable), iter(counts)
        image, text = jax.tree.unflatten(tree, [next(given) if is_float else next(rest) for is_float in floats])
        return contrastive_losses(image, text, settings, mesh=mesh).total

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # The projection of a low-rank word level is a parameter; all other arrays have one row per pair.
        of_pairs = leaf.shape[0] == assembly.config.training.batch_size
        sharding = batch_sharding(mesh) if of_pairs else replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    arguments = [placed(leaf) for leaf in leaves]
    parts = [
        [leaf for leaf, is_float in zip(arguments, floats, strict=True) if is_float is wanted]
        for wanted in (True, False)
    ]
    # Each gradient is sharded like its embedding. Without this the compiler may gather it on every device.
    placed_alike = replicated(mesh), [leaf.sharding for leaf in parts[0]]
    return jax.jit(jax.value_and_grad(value), out_shardings=placed_alike).lower(*parts)
