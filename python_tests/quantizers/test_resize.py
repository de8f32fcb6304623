"""The resize matrices against torch's own interpolation, in float64."""

import pytest
import torch
import torch.nn.functional as F

from vqdm_cuda.quantizers.resize import Pyramid, resize, resize_matrix

# From (h, w) to (h2, w2): uneven bins, one pixel, unequal sides, upsizing and downsizing.
SIZES = [
    ((16, 16), (5, 5)),
    ((16, 16), (13, 13)),
    ((8, 6), (3, 1)),
    ((1, 1), (4, 4)),
    ((3, 5), (16, 7)),
    ((4, 4), (4, 4)),
]


@pytest.mark.parametrize(("mode", "align_corners"), [("area", None), ("bicubic", False)])
@pytest.mark.parametrize(("size", "size2"), SIZES)
def test_equals_interpolate(size, size2, mode, align_corners):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = F.interpolate(x, size2, mode=mode, align_corners=align_corners)
    rows, cols = (resize_matrix(n, n2, mode) for n, n2 in zip(size, size2, strict=True))
    out = resize(x.permute(0, 2, 3, 1), rows, cols)
    torch.testing.assert_close(out.permute(0, 3, 1, 2), expected, rtol=1e-13, atol=1e-14)


def test_every_grid_of_a_pyramid_has_its_own_pair():
    pyramid = Pyramid(((1, 2), (3, 4), (6, 4), (6, 4)))
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    for grid, (down, up) in zip(pyramid.grids, pyramid.resizers(), strict=True):
        small = F.interpolate(x.permute(0, 3, 1, 2), grid, mode="area")
        torch.testing.assert_close(down(x).permute(0, 3, 1, 2), small, rtol=1e-13, atol=1e-14)
        large = F.interpolate(small, (6, 4), mode="bicubic")
        torch.testing.assert_close(up(down(x)).permute(0, 3, 1, 2), large, rtol=1e-13, atol=1e-14)


def test_the_matrices_are_not_saved_and_survive_casts_and_emptying():
    pyramid = Pyramid(((1, 1), (3, 3), (7, 7)))
    before = pyramid.matrices.clone()
    assert not pyramid.state_dict()
    for change in (pyramid.half, pyramid.float, lambda: pyramid.to("meta").to_empty(device="cpu")):
        change()
        assert torch.equal(pyramid.matrices, before)
