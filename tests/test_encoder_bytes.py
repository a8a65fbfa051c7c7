"""The bytes of a compiled program by part and kind, on a program small enough to count by hand."""

from afloc_jax.training.program_text import read
from benchmarks.encoder_bytes import moves

PROGRAM = """HloModule jit_f

%turn (x: f32[4,8]) -> f32[8,4] {
  %x = f32[4,8]{1,0} parameter(0)
  ROOT %turned = f32[8,4]{1,0} transpose(%x), dimensions={1,0}
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %y = f32[8]{0} get-tuple-element(%arg), index=1
  %twice = f32[8]{0} add(%y, %y), metadata={op_name="jit(f)/text_encoder/bert/layer_0/attention/add"}
  ROOT %out = (s32[], f32[8]{0}) tuple(%y, %twice)
}

ENTRY %main (p: f32[4,8]) -> f32[8,4] {
  %p = f32[4,8]{1,0} parameter(0)
  %part = ((f32[4,8]{1,0}), f32[1,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:1], [0:8]}
  %there = f32[1,8]{1,0:S(1)} slice-done(%part)
  %loop = (s32[], f32[8]{0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %gemm = (f32[8,8]{1,0}, s8[4096]{0}) custom-call(%p, %p), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/image_encoder/backbone/layer1_0/conv1/dot_general"}
  ROOT %fusion = f32[8,4]{1,0} fusion(%p), kind=kLoop, calls=%turn, metadata={op_name="jit(f)/image_encoder/backbone/bn1/transpose"}
}
"""  # noqa: E501


def test_bytes_are_counted_by_part_and_kind():
    """A slice of 8 numbers and its scalar; three rounds of a loop; a product without its scratch; a transposition."""
    counted = [(each.part, each.kind, each.read, each.written) for each in moves(read(PROGRAM))]
    assert counted == [
        ("other", "move", 8 * 4 + 4, 0),
        ("attention", "pass", 3 * 8 * 4, 3 * 8 * 4),
        ("blocks", "product", 32 * 4, 64 * 4),
        ("batch norm", "move", 32 * 4, 32 * 4),
    ]
