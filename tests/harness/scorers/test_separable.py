"""IL-NIQE's filters in two passes give what pyiqa's give in one."""

from __future__ import annotations

import pytest
import torch
from pyiqa.archs import niqe_arch

from harness.scorers.separable import column_and_row, filter_in_two_passes


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
    """pyiqa's filter and the one in two passes."""
    from pyiqa.matlab_utils import conv2d

    monkeypatch.setattr(niqe_arch, "conv2d", conv2d)
    filter_in_two_passes()
    return conv2d, niqe_arch.conv2d


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_derivatives_of_ilniqe_are_the_same(both, scale: int, channels: int) -> None:
    images = 255 * torch.rand(2, channels, 40, 37, dtype=torch.float64)
    images[..., :15, :15] = 0  # where nothing is, nothing comes: IL-NIQE counts values below and above 0
    for weight in niqe_arch.gauDerivative(1.66 / scale**0.28):
        assert column_and_row(weight[0, 0]) is not None
        one, two = (filtered(images, weight.repeat(channels, 1, 1, 1), groups=channels) for filtered in both)
        torch.testing.assert_close(two, one, rtol=0, atol=1e-10)
        assert torch.equal(two[..., :9, :9], torch.zeros_like(two[..., :9, :9]))


def test_a_filter_that_is_no_product_is_applied_whole(both) -> None:
    images, weight = (torch.rand(1, 1, *size, dtype=torch.float64) for size in ((20, 20), (5, 5)))
    assert column_and_row(weight[0, 0]) is None
    assert torch.equal(both[1](images, weight), both[0](images, weight))


def test_it_is_done_once(both) -> None:
    filter_in_two_passes()
    assert niqe_arch.conv2d is both[1]
