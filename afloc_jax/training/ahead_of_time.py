"""Does a run fit a pod? The whole training step, compiled for devices that are not there.

TPU topologies are compiled by the TPU compiler of `jax[tpu]`, which needs no TPU; `cpu:N` by the one for this
machine, split over N devices. What is compiled is what launch.py would run: the same model, loss, optimiser, shardings.
"""

import bisect
import functools
import math
import os
import re
from collections import Counter
from typing import Any

from afloc_jax.errors import UsageError, UserError
from afloc_jax.training.buffers import largest_buffers

GIB = 2**30
# Memory of a device that programs may use, as the refusals of libtpu 0.0.42's compiler state it.
# A v4 chip is two devices to JAX, each with its own half: what is said of a chip here is said of one of them.
HBM_BYTES = {"v5e": int(15.75 * GIB), "v6e": int(31.25 * GIB), "v5p": int(95.74 * GIB), "v4": int(15.25 * GIB)}
_ACCELERATORS = {"v5e": "v5litepod-16", "v6e": "v6e-16", "v5p": "v5p-16", "v4": "v4-16"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_COLLECTIVE = re.compile(rf" ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
_KERNEL = re.compile(r" custom-call\(.*custom_call_target=\"tpu_custom_call\"")
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMG]) of [\d.]+[KMG] hbm|\(([\d.]+)([KMG])\) exceeds available HBM")
_BYTES = {"K": 2**10, "M": 2**20, "G": GIB}
RESOLUTION = 1 / 32  # to which the search for the largest batch goes


def prepare_platform(topology: str) -> None:
    """Set what JAX reads when it starts; call before JAX is imported. Raises UsageError for a malformed topology."""
    kind, _, shape = topology.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a kept program does not know all of its memory any more
    if kind == "cpu":
        if not shape.isdigit() or int(shape) < 1:
            raise UsageError(f"--topology {topology}: write cpu:N with the number of devices, e.g. cpu:8")
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={shape}".strip()
        return
    if kind not in HBM_BYTES or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UsageError(f"--topology {topology}: write v5e:16x16, v6e:16x16, v5p:8x8x8, v4:4x4x4 or cpu:8")
    # The TPU library would otherwise ask the cloud which machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATORS[kind])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Nothing is driven, so several of these may run at once, beside a process that does own a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")


def topology_devices(topology: str) -> list[Any]:
    """The devices of a topology, none of which need to exist. Raises UserError where its compiler is missing."""
    import jax
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < int(shape):
            raise UserError(f"--topology {topology}: JAX started with {len(devices)} devices; use a new process")
        return devices[: int(shape)]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"--topology {topology}: no such topology, or no TPU compiler ({first}); "
            'the compiler comes with pip install "jax[tpu]" and needs no TPU'
        ) from error


def compile_step(config: Any, topology: str, global_batch: int = 0, part: str = "step") -> dict[str, Any]:
    """Compile the training step of `config`, or its losses alone, and say what it takes.

    Args:
        config: as launch.py takes it. The vocabulary size is `model.text.bert.vocab_size`, or BERT's.
        topology: as `prepare_platform` got it.
        global_batch: pairs over all chips; 0: `training.batch_size`.
        part: "step", or "loss": value and gradients of the losses, whose arguments are embeddings.

    Returns:
        topology, part, chips, global_batch, fits, peak_bytes_per_chip, argument_bytes_per_chip,
        temporary_bytes_per_chip, limit_bytes_per_chip (None for cpu), collectives {name: count} (places in the program:
        one inside a loop counts once), kernels (calls of Pallas kernels, counted alike), flops_per_chip and
        bytes_accessed_per_chip as the compiler counts them (a loop's body once, a kernel as it says itself), and
        largest_buffers: dicts of dtype, shape, bytes, places and from (see buffers.py).
        Where it does not fit there is no program: what would be read off it is None or empty.

    Raises:
        UserError: the batch does not divide over the chips, or the compiler fails for another reason than memory.
    """
    config = config.copy_and_resolve_references()
    config.training.batch_size = global_batch or config.training.batch_size
    devices = topology_devices(topology)
    if config.training.batch_size % len(devices):
        raise UsageError(f"a global batch of {config.training.batch_size} does not divide over {len(devices)} chips")
    limit = HBM_BYTES.get(topology.partition(":")[0])
    report: dict[str, Any] = {
        "topology": topology,
        "part": part,
        "chips": len(devices),
        "global_batch": config.training.batch_size,
        "limit_bytes_per_chip": limit,
    }
    try:
        compiled = _lower(config, devices, part).compile()
    except UserError:  # a wrong setting, said by what it belongs to
        raise
    except Exception as error:
        if not (used := _USED.search(str(error))):
            raise UserError(f"the compiler refused: {(str(error).splitlines() or [''])[0]}") from error
        needed = int(float(used[1] or used[3]) * _BYTES[used[2] or used[4]])
        unknown: dict[str, Any] = {"argument_bytes_per_chip": None, "temporary_bytes_per_chip": None}
        unknown |= {"collectives": {}, "largest_buffers": []}
        return report | {"fits": False, "peak_bytes_per_chip": needed} | unknown
    memory, cost, program = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    # What is donated comes out where it went in; the rest of the output is new.
    peak = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return report | {
        "fits": limit is None or peak <= limit,
        "peak_bytes_per_chip": peak,
        "argument_bytes_per_chip": arguments,
        "temporary_bytes_per_chip": temporary,
        "flops_per_chip": cost.get("flops"),
        "bytes_accessed_per_chip": cost.get("bytes accessed"),
        "collectives": dict(Counter(_COLLECTIVE.findall(program))),
        "kernels": len(_KERNEL.findall(program)),
        "largest_buffers": largest_buffers(program),
    }


def largest_batch(config: Any, topology: str, *, part: str = "step") -> dict[str, Any]:
    """The report of the largest global batch that fits: doubling, then bisection to a 32nd of it.

    Only `allowed_batches` are tried, and what fits is taken to fit with fewer pairs too.

    Returns:
        `compile_step`'s report, of the smallest allowed batch where nothing fits, and `too_large`: the smallest batch
        tried that does not fit, None where the largest allowed one does.

    Raises:
        UsageError: a topology without a limit, or settings that allow no batch. UserError: as `compile_step`.
    """
    if topology.partition(":")[0] not in HBM_BYTES:
        raise UsageError(
            f"--topology {topology}: has no limit that a batch could be too large for; give --global_batch"
        )
    batches = allowed_batches(config, len(topology_devices(topology)))
    best = compile_step(config, topology, batches[0], part=part)
    if not best["fits"]:
        return best | {"too_large": batches[0]}
    low, high = 0, len(batches)  # places in `batches`: the largest known to fit, the smallest known not to
    while high - low > 1 and (high == len(batches) or batches[high] - batches[low] > RESOLUTION * batches[low]):
        doubled = min(bisect.bisect_left(batches, 2 * batches[low]), len(batches) - 1)
        place = doubled if high == len(batches) else (low + high) // 2
        report = compile_step(config, topology, batches[place], part=part)
        if report["fits"]:
            best, low = report, place
        else:
            high = place
    return best | {"too_large": batches[high] if high < len(batches) else None}


def allowed_batches(config: Any, chips: int, most: int = 2**20) -> list[int]:
    """The global batches of 2 to `most` pairs that `config` takes on so many chips, in order. Raises UsageError.

    They divide over the chips, and into contrast groups, groups of batch statistics and micro batches.
    """
    from afloc_jax.losses.ring import fits_around

    loss, group = config.loss, config.loss.contrast_group
    whole = (chips, group, config.model.image.statistics_group, config.training.micro_batch)
    step = math.lcm(*(number or 1 for number in whole))
    batches = [batch for batch in range(step, most + 1, step) if batch > 1]
    if group and loss.contrast_unit == "caption" and loss.implementation in ("auto", "ring"):
        batches = [batch for batch in batches if fits_around(group, batch // chips)]
    if not batches:
        raise UsageError(
            f"no global batch of up to {most} pairs divides over {chips} chips, loss.contrast_group, "
            "model.image.statistics_group and training.micro_batch alike; change one of them"
        )
    return batches


def trace_step(config: Any) -> None:
    """Trace the training step for the devices at hand, without data. Raises UsageError where the config makes none."""
    import jax

    from afloc_jax.training.failures import explained

    with explained():
        _lower(config, jax.devices(), "step")


def _lower(config: Any, devices: list[Any], part: str) -> Any:
    import jax

    from afloc_jax.models import build, initial_variables, trainable
    from afloc_jax.training.gradients import token_batch
    from afloc_jax.training.mesh import build_mesh, state_sharding
    from afloc_jax.training.optimizer import build_direction, build_schedule, freeze
    from afloc_jax.training.step import batch_like, build_train_step, new_state
    from afloc_jax.training.train import PRECISIONS
    from data_pipelines.constants import IMAGE_SIZE

    mesh = build_mesh(devices, config.training.fsdp)
    side = config.data.builder.get("image_size", IMAGE_SIZE)
    model = build(config.model, dtype=PRECISIONS[config.training.precision])
    variables = jax.eval_shape(functools.partial(initial_variables, build(config.model)), jax.random.key(0))

    def placed(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    batch = batch_like(config, side, mesh)
    if part == "loss":
        embed = functools.partial(model.apply, with_factors=config.loss.low_rank)
        image, text = jax.eval_shape(
            lambda variables, batch: embed(variables, batch["image"], token_batch(batch)), variables, batch
        )
        if config.loss.low_rank:  # the loss takes the factors of the shallow map; a run never makes the map itself
            image = image.replace(shallow=None)
        return _lower_loss(config, mesh, (image, text))
    direction = freeze(build_direction(config.optimizer), trainable(variables["params"], config.model))
    state = jax.eval_shape(lambda variables: new_state(variables, direction), variables)
    schedule = build_schedule(config.optimizer, 1000, config.training.steps or 1000 * config.training.epochs)
    step: Any = build_train_step(model, config, direction, schedule, mesh)  # what jit returns
    state = jax.tree.map(placed, state, state_sharding(state, mesh))
    return step.lower(state, batch)


def _lower_loss(config: Any, mesh: Any, levels: Any) -> Any:
    """Value and gradients of the losses alone, from embeddings of the shapes of `levels`."""
    import jax
    import jax.numpy as jnp

    from afloc_jax.losses import contrastive_losses
    from afloc_jax.training.mesh import batch_sharding, replicated

    leaves, tree = jax.tree.flatten(levels)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def value(differentiable: list[Any], counts: list[Any]) -> Any:
        given, rest = iter(differentiable), iter(counts)
        image, text = jax.tree.unflatten(tree, [next(given) if is_float else next(rest) for is_float in floats])
        return contrastive_losses(image, text, config.loss, mesh=mesh).total

    def placed(leaf: Any) -> Any:
        # The projection of a low-rank word level is a parameter; everything else belongs to pairs.
        of_pairs = leaf.shape[0] == config.training.batch_size
        sharding = batch_sharding(mesh) if of_pairs else replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    arguments = [placed(leaf) for leaf in leaves]
    parts = [
        [leaf for leaf, is_float in zip(arguments, floats, strict=True) if is_float is wanted]
        for wanted in (True, False)
    ]
    # Each gradient lies where its embedding does; left to itself the compiler may gather it.
    placed_alike = replicated(mesh), [leaf.sharding for leaf in parts[0]]
    return jax.jit(jax.value_and_grad(value), out_shardings=placed_alike).lower(*parts)
