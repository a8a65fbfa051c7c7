"""Permutes of a ring, counted in programs small enough to read."""

import pytest

from afloc_jax.training.permutes import RingPermutes, ring_permutes
from afloc_jax.training.program_text import read

# A ring's loop as the TPU compiler writes it: products are convolutions inside fusions, and a tile is a loop of them.
TPU = """HloModule jit_value, is_scheduled=true

%fused_computation.1 (p.0: bf16[64,512], p.1: bf16[512,64]) -> f32[64,64] {
  %p.0 = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[512,64]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[64,64]{1,0:T(8,128)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%fused_computation.2 (p.2: f32[64,64]) -> f32[64,64] {
  %p.2 = f32[64,64]{1,0:T(8,128)} parameter(0)
  ROOT %exponential.1 = f32[64,64]{1,0:T(8,128)} exponential(%p.2)
}

%bins (arg: (s32[], bf16[64,512])) -> (s32[], bf16[64,512]) {
  %arg = (s32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %fusion.1 = f32[64,64]{1,0:T(8,128)} fusion(%arg, %arg), kind=kOutput, calls=%fused_computation.1
  ROOT %out = (s32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)}) tuple(%arg)
}

%ring (arg.1: (s32[], bf16[64,512])) -> (s32[], bf16[64,512]) {
  %arg.1 = (s32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %send = (bf16[64,512]{1,0}, bf16[64,512]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%arg.1)
BEFORE
  %sent = bf16[64,512]{1,0:T(8,128)(2,1)} collective-permute-done(%send)
AFTER
  ROOT %out.1 = (s32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)}) tuple(%arg.1, %sent)
}

ENTRY %main (x: bf16[64,512]) -> bf16[64,512] {
  %x = bf16[64,512]{1,0:T(8,128)(2,1)} parameter(0)
  %while.2 = (s32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)}) while(%x), condition=%until, body=%ring
  ROOT %last = bf16[64,512]{1,0:T(8,128)(2,1)} collective-permute(%while.2), channel_id=2
}
"""
TILE = "  %while.1 = (s32[]{:T(128)}, bf16[64,512]{1,0:T(8,128)(2,1)}) while(%arg.1), condition=%until, body=%bins"
FUSION = "  %fusion.3 = f32[64,64]{1,0:T(8,128)} fusion(%arg.1), kind=kOutput, calls=%fused_computation.1"
NO_PRODUCT = "  %fusion.2 = f32[64,64]{1,0:T(8,128)} fusion(%arg.1), kind=kLoop, calls=%fused_computation.2"
BRANCH = "  %either = f32[] conditional(%which, %x, %x), branch_computations={%fused_computation.2, %bins}"
CALL = "  %call.1 = f32[64,64] call(%arg.1), to_apply=%bins"
KERNEL = '  %local.1 = f32[8,64]{1,0} custom-call(%arg.1), custom_call_target="tpu_custom_call"'


@pytest.mark.parametrize(
    ("before", "after", "over_products"),
    [
        (TILE, NO_PRODUCT, 1),
        (FUSION, "", 1),
        (BRANCH, "", 1),
        (CALL, "", 1),
        (KERNEL, "", 1),
        (NO_PRODUCT, TILE, 0),
        ("", TILE, 0),
    ],
)
def test_products_count_where_they_are_between_start_and_done(before, after, over_products):
    """Two permutes; the one outside the loop has no start of its own."""
    program = read(TPU.replace("BEFORE", before).replace("AFTER", after))
    assert ring_permutes(program) == RingPermutes(2, 1, over_products)


# The GPU compiler calls products of its libraries and writes a collective in either form.
GPU = """HloModule jit_value, is_scheduled=true

%wrapped_permute (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %collective-permute.1 = f32[8]{0} collective-permute(%p), channel_id=1
}

%wrapped_gather (p.1: f32[8]) -> f32[16] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %all-gather.1 = f32[16]{0} all-gather(%p.1), channel_id=2, dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %first = ((f32[8]{0}, f32[8]{0}), (f32[8]{0}, f32[8]{0})) collective-permute-start(%x, %x), BACKEND
  %gather = ((f32[8]{0}), f32[16]{0}) async-start(%x), calls=%wrapped_gather
  %gemm = (f32[8]{0}, s8[4]{0}) custom-call(%x, %x), custom_call_target="TARGET"
  %first.1 = (f32[8]{0}, f32[8]{0}) collective-permute-done(%first)
  %second = ((f32[8]{0}), f32[8]{0}) async-start(%x), calls=%wrapped_permute
  %gathered = f32[16]{0} async-done(%gather)
  %passed = ((f32[8]{0}), f32[8]{0}) async-update(%second)
  ROOT %second.1 = f32[8]{0} async-done(%passed)
}
"""


@pytest.mark.parametrize(
    "target", ["__cublas$gemm", "__cublas$lt$matmul", "__cudnn$convForward", "__gpu$xla.gpu.triton"]
)
def test_both_forms_of_a_gpus_permute_are_counted(target):
    program = GPU.replace("BACKEND", 'backend_config={"collective_backend_config":{"is_sync":false}}')
    assert ring_permutes(read(program.replace("TARGET", target))) == RingPermutes(2, 2, 1)


def test_a_start_that_waits_for_its_end_and_a_kernel_without_products_do_not_count():
    waiting = GPU.replace("BACKEND", 'backend_config={"collective_backend_config":{"is_sync":true}}')
    assert ring_permutes(read(waiting)) == RingPermutes(2, 1, 0)
    solve = GPU.replace("BACKEND", "channel_id=3").replace("TARGET", "__cublas$triangularSolve")
    assert ring_permutes(read(solve)) == RingPermutes(2, 2, 0)


def test_a_program_of_one_device_has_none():
    assert ring_permutes(read("ENTRY %main (x: f32[8]) -> f32[8] {\n  %x = f32[8]{0} parameter(0)\n}")) == RingPermutes(
        0, 0, 0
    )
