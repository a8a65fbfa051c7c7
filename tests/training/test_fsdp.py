"""Parameters and optimiser state split over devices: the same run in less memory for each of them."""

import jax
import numpy as np
import pytest

from afloc_jax.errors import UsageError
from afloc_jax.training import mesh as meshes
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.mesh import build_mesh, fetch, place_batch, state_sharding
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.start import first_variables
from tests.training.conftest import assembled, batches_of, changed, tiny_config

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="SKIPPED: needs eight devices, see tests/conftest.py")

PARTS = ("params", "optimizer_state")
LOSSES = ("loss", "loss/report", "loss/sentence", "loss/word", "grad_norm")


@pytest.fixture(autouse=True)
def compiled_as_in_use(request):
    """The slow tests run the programs of users, which take a minute to compile.

    Runs are compared over several steps. A ReLU at the edge of 0 may tell two roundings apart by more than 1e-6; these
    programs do not meet one here, nor do those of the other tests from their seed.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    if request.node.get_closest_marker("slow"):
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def small_arrays_are_split_too(monkeypatch):
    """The tiny network has no large ones."""
    monkeypatch.setattr(meshes, "WHOLE_BELOW", 256)


def prepared(fsdp, devices=8, **changes):
    """The tiny run put together, its first state and its batches."""
    run, data = assembled(changed(tiny_config(), {"training.fsdp": fsdp, **changes}), devices)
    state = run.state(first_variables(run.config))
    return run, state, batches_of(data.training, run.config, data.tokenizer)


def trained(fsdp, devices, steps=4, **changes):
    """Losses of some steps and of a validation afterwards, and the state."""
    run, state, batches = prepared(fsdp, devices, **changes)
    rows = []
    for number in range(steps):
        state, metrics = run.train_step(state, place_batch(batches.batch_at(number), run.mesh))
        rows.append([metrics.named()[key] for key in LOSSES])
    found = run.validation_step(state.params, state.batch_stats, place_batch(batches.batch_at(9), run.mesh))
    return np.array(rows), np.array([found.named()[key] for key in LOSSES[:-1]]), state


def bytes_per_device(tree):
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return set(held.values())


# Eight devices wait for each other at every collective: minutes on two cores.
@pytest.mark.parametrize(
    ("devices", "fsdp", "changes"),
    [
        (2, 2, {"seed": 7}),
        pytest.param(8, 8, {}, marks=pytest.mark.slow),
        pytest.param(
            8,
            4,
            {"training.batch_size": 16, "training.micro_batch": 8, "loss.low_rank": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(8, 4, {"training.remat": "full", "loss.contrast_group": 2}, marks=pytest.mark.slow),
        pytest.param(8, 4, {"training.remat": "blocks", "model.image.freeze": True}, marks=pytest.mark.slow),
    ],
)
def test_a_split_state_gives_the_losses_of_a_whole_one(devices, fsdp, changes):
    mesh = build_mesh(jax.devices()[:devices], fsdp)
    expected, found = trained(1, devices, **changes), trained(fsdp, devices, **changes)
    np.testing.assert_allclose(found[0][:, :-1], expected[0][:, :-1], rtol=1e-6)
    np.testing.assert_allclose(found[0][:, -1], expected[0][:, -1], rtol=1e-5)  # the norm of the gradient
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    for leaf, wanted in zip(jax.tree.leaves(found[2]), jax.tree.leaves(state_sharding(found[2], mesh)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)


def test_large_arrays_are_split_along_their_largest_dimension_that_divides():
    shapes = {"wide": (3, 3, 64, 128), "tall": (512, 32), "odd": (1001, 16), "none": (7, 99), "few": (8, 16), "one": ()}
    arrays = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    found = {name: tuple(sharding.spec) for name, sharding in state_sharding(arrays, build_mesh(fsdp=4)).items()}
    assert found == {
        "wide": (None, None, None, "fsdp"), "tall": ("fsdp",), "odd": (None, "fsdp"), "none": (), "few": (), "one": (),
    }  # fmt: skip
    assert all(sharding.is_fully_replicated for sharding in state_sharding(arrays, build_mesh()).values())


def test_a_device_holds_its_part_of_parameters_and_moments_and_no_more():
    run, state, _ = prepared(8)
    whole = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(getattr(state, name))) for name in PARTS}
    for name in PARTS:
        (held,) = bytes_per_device(getattr(state, name))
        small = sum(leaf.nbytes for leaf in jax.tree.leaves(getattr(state, name)) if leaf.is_fully_replicated)
        assert held == small + (whole[name] - small) / 8
        assert held < whole[name] / 3
    # The batch is still split over all devices, a row on each.
    batch = place_batch({"image": np.zeros((8, 4, 4), np.uint8), "index": np.arange(8)}, run.mesh)
    assert [shard.index[0].start for shard in batch["image"].addressable_shards] == list(range(8))


@pytest.mark.slow
def test_a_compiled_step_holds_less():
    """Bytes of the arguments of the compiled step, and that gradients are not kept whole between steps."""
    held = {}
    for fsdp in (1, 8):
        compiled = prepared(fsdp)[0].lower().compile()
        held[fsdp] = compiled.memory_analysis()
        assert ("all-gather" in compiled.as_text()) or fsdp == 1
    assert held[8].argument_size_in_bytes < 0.5 * held[1].argument_size_in_bytes
    assert held[8].alias_size_in_bytes > 0.8 * held[8].output_size_in_bytes  # the state is written where it was


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 8), pytest.param(8, 1, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_a_checkpoint_is_restored_to_another_number_of_parts(before, after, tmp_path):
    _, state, _ = prepared(before)
    checkpoints = Checkpoints(tmp_path, keep_best=1)
    checkpoints.save(state, 3, {"step": 3}, 1.0)
    checkpoints.close()
    _, template, _ = prepared(after, seed=5)
    restored, progress = Checkpoints(tmp_path, keep_best=1).restore_last(template)
    assert progress == {"step": 3}
    jax.tree.map(np.testing.assert_array_equal, fetch(restored), fetch(state))
    same = jax.tree.map(
        lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim), restored, template
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("fsdp", [3, 16])
def test_parts_that_do_not_divide_the_devices_are_refused(fsdp):
    config = tiny_config()
    config.training.fsdp = fsdp
    words = rf"config.training.fsdp = {fsdp}: must be a divisor of the number of devices, 8$"
    with pytest.raises(UsageError, match=words):
        RunConfig.from_config(config).check_batch(8)
    with pytest.raises(UsageError, match=words):
        build_mesh(fsdp=fsdp)
