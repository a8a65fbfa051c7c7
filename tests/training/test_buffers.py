"""What `afloc compile` says of a program's largest arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.training.buffers import largest_buffers
from afloc_jax.training.program_text import read


def test_the_largest_arrays_of_a_program_come_first_with_what_made_them():
    """x x^T of a loop's carry is [300, 300] in float32, and has to be in memory to be sorted; its sine has not."""

    def total(points):
        def add(_, x):
            return jnp.sin(jnp.sort(x @ x.T)).sum() + x

        return jax.lax.fori_loop(0, 3, add, points)

    program = jax.jit(total).lower(jax.ShapeDtypeStruct((300, 20), np.float32)).compile().as_text()
    first, second = largest_buffers(read(program), most=2)
    assert (first.dtype, first.shape, first.bytes) == ("f32", [300, 300], 4 * 300 * 300)
    assert any("dot_general" in origin for origin in first.origins)
    assert (second.shape, second.bytes) == ([300, 20], 4 * 300 * 20)
    assert "points" in second.origins


@pytest.mark.parametrize(
    ("array", "size"),
    [
        ("f32[5,97,3]{1,2,0:T(4,128)}", 10240),
        ("bf16[7,130]{1,0:T(8,128)(2,1)}", 4096),
        ("bf16[1,1000]{1,0:T(2,128)(2,1)}", 4096),
        ("bf16[1000]{0:T(1024)(128)(2,1)}", 2048),
        ("pred[70,200]{1,0:T(8,128)(4,1)}", 18432),
        ("s8[3,70,200]{2,1,0:T(8,128)(4,1)}", 55296),
        ("f32[]{:T(128)}", 512),
        ("f32[4,2,1,9]{3,2,1,0:T(1,128)}", 4096),
        ("f32[5,97,3]{2,1,0}", 5820),
    ],
)
def test_bytes_are_those_of_padded_tiles(array, size):
    """As `argument_size_in_bytes` of libtpu 0.0.42.1, v5e, for a program of this one argument."""
    program = f'ENTRY %main (x: f32[]) -> f32[] {{\n  %x.1 = {array} parameter(0), op_name="x"\n}}'
    (kind,) = largest_buffers(read(program))
    assert kind.bytes == size


def test_arrays_inside_fusions_in_other_memories_and_named_twice_are_left_out():
    """The words are those of the TPU compiler."""
    program = """
%fused_computation.2 (param_0.9: bf16[1000,512]) -> f32[1000] {
  %convert.13 = f32[1000,512]{1,0:T(8,128)} convert(%param_0.9)
  ROOT %reduce.8 = f32[1000]{0:T(1024)} reduce(%convert.13, %zero), dimensions={1}, to_apply=%add
}

%body (arg: (s32[], bf16[1000,512])) -> (s32[], bf16[1000,512]) {
  %arg = (s32[]{:T(128)}, bf16[1000,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.9 = bf16[1000,512]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %fusion.8 = (f32[1000]{0:T(1024)}, f32[40,50]{1,0:T(8,128)}) fusion(%copy.1), kind=kLoop, calls=%fused_computation.2
  %copy.1 = bf16[1000,512]{1,0:T(8,128)(2,1)S(1)} copy(%get-tuple-element.9)
}

ENTRY %main.3 (x.1: bf16[1000,512]) -> bf16[1000,512] {
  %x.1 = bf16[1000,512]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %permute = (f32[64]{0}, f32[64]{0}, u32[]{:S(2)}) collective-permute-start(%y), metadata={op_name="ring/ppermute"}
  %permute.1 = f32[64]{0} collective-permute-done(%permute)
  %while.1 = (s32[]{:T(128)}, bf16[1000,512]{1,0:T(8,128)(2,1)}) while(%tuple.1), condition=%until, body=%body
}
"""
    found = [(kind.dtype, kind.shape, kind.places, kind.origins) for kind in largest_buffers(read(program))]
    assert found == [
        ("bf16", [1000, 512], 1, ["x"]),
        ("f32", [40, 50], 1, ["fusion"]),
        ("f32", [1000], 1, ["fusion"]),
        ("f32", [64], 1, ["ring/ppermute"]),
    ]
