"""Kernels of a GPU program, loops multiplied out, on programs small enough to count by hand."""

from afloc_jax.training.launches import launches
from afloc_jax.training.program_text import read

PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[8])->f32[8]}

%inner (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%body_of_fusion
  %gemm = (f32[8]{0}, s8[4]{0}) custom-call(%fusion.1), custom_call_target="__cublas$gemm"
  ROOT %out = (s32[], f32[8]) tuple(%x, %fusion.1)
}

%outer (arg.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.1 = (s32[], f32[8]) parameter(0)
  %copy.1 = (s32[], f32[8]) copy(%arg.1)
  ROOT %while.1 = (s32[], f32[8]) while(%copy.1), body=%inner, metadata={op_name="jit(f)/jvp(word)/while"}
}

%one (x.1: f32[8]) -> f32[8] {
  ROOT %sort.1 = f32[8]{0} sort(%x.1), dimensions={0}, to_apply=%less
}

%two (x.2: f32[8]) -> f32[8] {
  %sort.2 = f32[8]{0} sort(%x.2), dimensions={0}, to_apply=%less
  ROOT %sort.3 = f32[8]{0} sort(%sort.2), dimensions={0}, to_apply=%less
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %while.2 = (s32[], f32[8]) while(%start), condition=%less, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %call.1 = f32[8]{0} call(%p), to_apply=%one
  %either = f32[8]{0} conditional(%which, %p, %p), branch_computations={%one, %two}
  %sum = f32[8]{0} all-reduce-start(%p), to_apply=%add
  %done = f32[8]{0} all-reduce-done(%sum)
  ROOT %bitcast.1 = f32[8]{0} bitcast(%done)
}
"""


def test_loops_calls_and_branches_are_counted_as_often_as_they_run():
    """Three rounds of a copy and a loop of two kernels; a call of one; the longer branch, of two; one collective."""
    assert launches(read(PROGRAM), lambda origin: {"jit(f)/jvp(word)/while": 5}[origin]) == 3 * (1 + 5 * 2) + 1 + 2 + 1
