"""Reading a compiled program's cycles (benchmarks/tpu_schedule.py); the TPU compiler itself is not needed."""

from benchmarks.tpu_schedule import cycles_of

PROGRAM = """HloModule jit_tile

%product (a: f32[8], b: f32[8]) -> f32[8] {
  ROOT %convolution.1 = f32[8]{0} convolution(%a, %b)
}

%again (c: f32[8], d: f32[8]) -> f32[8] {
  ROOT %convolution.2 = f32[8]{0} convolution(%c, %d)
}

%rare (x: f32[8]) -> f32[8] {
  ROOT %slow = f32[8]{0} exponential(%x)
}

%usual (y: f32[8]) -> f32[8] {
  ROOT %fast = f32[8]{0} negate(%y)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %fusion.1 = f32[8]{0} fusion(%p, %p), kind=kOutput, calls=%product
  %fusion.2 = f32[8]{0} fusion(%fusion.1, %p), kind=kOutput, calls=%again
  ROOT %choice = f32[8]{0} conditional(%p, %p, %p), branch_computations={%rare, %usual}
}
"""


def test_cycles_are_those_of_the_entry_and_of_the_usual_branch():
    estimated = {"fusion.1": 100, "fusion.2": 40, "fast": 3, "slow": 1000}
    assert cycles_of(PROGRAM, estimated) == (143, None)


def test_the_second_of_two_products_alike_counts_as_the_first():
    assert cycles_of(PROGRAM, {"fusion.1": 100, "fast": 3}) == (203, None)


def test_a_product_without_cycles_is_named():
    assert cycles_of(PROGRAM, {"fast": 3}) == (3, "fusion.2")
