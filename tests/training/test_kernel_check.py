"""A run with kernels compares a tile with XLA's before its first step."""

import pytest

from afloc_jax.errors import UserError
from afloc_jax.losses import kernels
from afloc_jax.losses.kernels import attention
from afloc_jax.training.kernel_check import check_kernel
from tests.training.conftest import assembled, changed, train

pytestmark = pytest.mark.usefixtures("memory")


@pytest.mark.parametrize(("kernel", "low_rank"), [("pallas", True), ("triton", False)])
def test_kernels_that_are_right_pass(config, kernel, low_rank, capsys):
    check_kernel(assembled(changed(config, {"loss.kernel": kernel, "loss.low_rank": low_rank}))[0])
    assert f"loss.kernel = '{kernel}': a tile of each level is XLA's, to " in capsys.readouterr().err


@pytest.mark.parametrize("factor", [0.9, float("nan")])
def test_kernels_that_are_wrong_are_refused_before_anything_is_written(config, factor, tmp_path, monkeypatch):
    right = attention.backward_call

    def wrong(*given):
        d_regions, d_units, d_rows = right(*given)
        return d_regions, factor * d_units, d_rows

    monkeypatch.setattr(kernels.attention, "backward_call", wrong)
    with pytest.raises(UserError, match=r"gradients of units of a tile of words differ from XLA's .* set it to 'xla'"):
        train(changed(config, {"loss.kernel": "pallas"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_kernels_there_is_nothing_to_compare(config, capsys):
    check_kernel(assembled(config)[0])
    assert not capsys.readouterr().err
