"""The CUDA kernels of pair_logsumexp, pair_sums and pair_argmin against their definitions in float64."""

import contextlib
import itertools
import math
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

import simt
from cases import NO_GPU, NO_SIMT, assert_graph_replays, no_waiting_for_gpu

pair_logsumexp, pair_sums, pair_argmin = (
    getattr(torch.ops.vqdm, name) for name in ("pair_logsumexp", "pair_sums", "pair_argmin")
)
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = [(1, 1, 1), (3, 2, 2), (127, 128, 16), (129, 257, 3), (70, 300, 17), (260, 40, 33), (5, 130, 130)]
KERNELS = [
    *(pytest.param(f"simt {path}", marks=NO_SIMT) for path in ("tensor_core", "portable")),
    *(pytest.param(f"cuda {path}", marks=NO_GPU) for path in ("tensor_core", "portable")),
]


@pytest.fixture(autouse=True, params=KERNELS)
def kernel(request, monkeypatch):
    device, _, path = request.param.partition(" ")
    monkeypatch.setenv("VQDM_CUDA_KERNEL", path)
    seed = zlib.crc32(request.node.name.encode())  # another order of threads and blocks for every test
    kernels = simt.kernels("random", seed) if device == "simt" else contextlib.nullcontext()
    with kernels, torch.device("cpu" if device == "simt" else device):
        yield request.param


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    return x.to(dtype).to(torch.get_default_device())


def per_head(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def costs(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    """[H, N, M] by the definition: float64, from left to right."""
    D = torch.zeros(x.shape[0], x.shape[1], y.shape[1], dtype=torch.float64)
    for j in range(x.shape[2]):
        difference = x[:, :, None, j].double() - y[:, None, :, j].double()
        D = D + difference * difference
    return D if squared else D.sqrt()


def is_wide(x: Tensor, y: Tensor) -> bool:
    return torch.float64 in (x.dtype, y.dtype)


def assert_logsumexp(x: Tensor, y: Tensor, weights: Tensor, scale: Tensor, squared: bool, relative: float = 1.0):
    """To 3e-6 (or 3e-14) of the largest number whose exponential is taken."""
    out = pair_logsumexp(x, y, weights, scale, squared)
    c = scale[:, None, None] * costs(x, y, squared)
    expected = (weights[:, None] - c).logsumexp(2)
    spread = torch.where(weights.isfinite(), weights - expected.amax(1, keepdim=True), 0.0).abs().amax()
    tolerance = (3e-14 if is_wide(x, y) else 3e-6) * relative * (1 + float(c.abs().max()) + float(spread))
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected, rtol=1e-15, atol=tolerance)
    return out


def assert_sums(x: Tensor, y: Tensor, shift: Tensor) -> None:
    out = pair_sums(x, y, shift)
    c = costs(x, y, False)
    moved = c - shift[:, None, None]
    expected = torch.stack([moved.sum((1, 2)), (moved * moved).sum((1, 2))], 1)
    unit = 1e-14 if is_wide(x, y) else 2e-6
    bound = torch.stack([c.sum((1, 2)), 2 * (moved.abs() * c).sum((1, 2)) + unit * (c * c).sum((1, 2))], 1)
    assert ((out - expected).abs() <= unit * bound + 1e-300).all(), (out, expected)


def words(seed: int, rows: np.ndarray, num_codes: int, head: int) -> np.ndarray:
    """Philox4x32-10, key (seed), counter (row, code // 4, head), word code % 4; [rows, codes]."""
    mask, shape = np.uint64(0xFFFFFFFF), (len(rows), -(-num_codes // 4))
    rows = rows.astype(np.uint64)[:, None]
    groups = np.arange(shape[1], dtype=np.uint64)[None]
    c = [np.broadcast_to(v, shape) for v in (rows & mask, rows >> np.uint64(32), groups, np.uint64(head))]
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [b >> np.uint64(32) ^ c[1] ^ key[0], b & mask, a >> np.uint64(32) ^ c[3] ^ key[1], a & mask]
        key = [key[0] + np.uint64(0x9E3779B9) & mask, key[1] + np.uint64(0xBB67AE85) & mask]
    return np.stack(c, 2).reshape(shape[0], -1)[:, :num_codes]


def values(x: Tensor, y: Tensor, bias: Tensor, noise: Tensor, squared: bool, seed: int, first_row: int) -> Tensor:
    out = costs(x, y, squared) + bias[:, None]
    for h in range(x.shape[0]):
        if float(noise[h]) == 0:
            continue
        uniform = (words(seed, first_row + np.arange(x.shape[1]), y.shape[1], h) + 0.5) * 2.0**-32
        out[h] -= float(noise[h]) * torch.as_tensor(-np.log(-np.log(uniform)), device=out.device)
    return out


def assert_argmin(x, y, bias, noise=None, squared=False, seed=0, first_row=0) -> Tensor:
    noise = torch.zeros(x.shape[0], dtype=torch.float64) if noise is None else noise
    indices = pair_argmin(x, y, bias, noise, squared, seed, first_row)
    expected = values(x, y, bias, noise, squared, seed, first_row)
    least = expected.where(~expected.isnan(), math.inf).amin(2, keepdim=True)
    assert torch.equal(indices, (expected == least).byte().argmax(2))  # the first; 0 where all are NaN
    return indices


def assert_all(x: Tensor, y: Tensor, squared: bool, scale: float = 5.0) -> None:
    H, M = y.shape[:2]
    weights, factor = 3 * normal(H, M, seed=7, dtype=torch.float64), scale * (1 + per_head(*range(H)))
    assert_logsumexp(x, y, weights, factor, squared)
    assert_sums(x, y, costs(x, y, False).mean((1, 2)) * 1.01)
    assert_argmin(x, y, weights / factor[:, None], None, squared)
    assert_argmin(x, y, weights / factor[:, None], 1 / factor, squared, seed=2**63 - 25, first_row=2**32 - 7)


# ---- values ----


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("N", "M", "d"), SIZES)
def test_sizes(N: int, M: int, d: int, squared: bool) -> None:
    assert_all(normal(1, N, d, seed=1), normal(1, M, d, seed=2), squared)


@pytest.mark.parametrize(("x_dtype", "y_dtype"), list(itertools.product(FLOATING, FLOATING)))
def test_every_pair_of_dtypes(x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    assert_all(normal(1, 30, 9, dtype=x_dtype), normal(1, 140, 9, seed=1, dtype=y_dtype), False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_and_heads(dtype: torch.dtype) -> None:
    x = normal(2, 5, 60, dtype=dtype).transpose(1, 2)  # columns apart
    y = normal(1, 290, 5, seed=1, dtype=dtype)[:, ::2].expand(2, -1, -1)  # rows apart, and one for both heads
    assert_all(x, y, False)
    weights = normal(290, 2, seed=2, dtype=torch.float64)[::2].T
    scale = per_head(3.0, 9.0, 7.0)[::2]
    assert_logsumexp(x, y, weights, scale, True)
    assert_logsumexp(x, y, weights[:1].expand(2, -1), scale[:1].expand(2), False)
    assert_argmin(x, y, weights, 1 / scale, True, seed=-5)


def test_a_dimension_too_large_for_shared_memory(kernel: str) -> None:
    if kernel.startswith("simt"):
        simt.module().set_max_shared_bytes(64 << 10)
    try:
        assert_all(normal(1, 20, 40), normal(1, 130, 40, seed=1), False)
    finally:
        if kernel.startswith("simt"):
            simt.module().set_max_shared_bytes(227 << 10)


def test_several_tiles_of_codes_in_a_block() -> None:
    x, y = normal(133, 1, 33), normal(1, 256, 33, seed=1).expand(133, -1, -1)
    assert_logsumexp(x, y, normal(133, 256, seed=2, dtype=torch.float64), 2 + torch.rand(133).double(), False)


# ---- hard inputs ----


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_offsets(offset: float, squared: bool) -> None:
    assert_all(normal(1, 60, 8) + offset, normal(1, 200, 8, seed=1) + offset, squared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e15])
def test_units(size: float, dtype: torch.dtype) -> None:
    x, y = normal(1, 40, 4, dtype=dtype) * size, normal(1, 150, 4, seed=1, dtype=dtype) * size
    weights = normal(1, 150, seed=2, dtype=torch.float64)
    assert_logsumexp(x, y, weights, per_head(5 / size), False)
    assert_logsumexp(x, y, weights, per_head(5 / size**2), True)
    assert_sums(x, y, per_head(2 * size))
    assert_argmin(x, y, weights * size, per_head(0.2 * size))
    assert_argmin(x, y, weights * size**2, squared=True)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e7])
def test_scales(scale: float, squared: bool) -> None:
    x, y = normal(1, 40, 6), normal(1, 150, 6, seed=1)
    assert_logsumexp(x, y, normal(1, 150, seed=2, dtype=torch.float64), per_head(scale), squared)
    assert_argmin(x, y, normal(1, 150, dtype=torch.float64) / scale, per_head(1 / scale), squared, seed=3)


@pytest.mark.parametrize("d", [2, 16])
def test_points_that_coincide_or_nearly_do(d: int) -> None:
    x, y = normal(1, 150, d), normal(1, 170, d, seed=1)
    y[:, :50] = x[:, 50:100]
    y[:, 50:100] = x[:, :50] * (1 + 1e-6)
    assert_all(x, y, False, scale=1e3)
    # Nothing but the coinciding code counts, at cost 0 exactly.
    for scale in (1e7, 1e60):
        out = pair_logsumexp(x[:, 50:100], y, torch.zeros(1, 170, dtype=torch.float64), per_head(scale), False)
        assert torch.equal(out, torch.zeros_like(out))
    assert pair_argmin(x, x, torch.zeros(1, 150).double(), per_head(0), False, 0, 0).tolist() == [list(range(150))]


def test_far_clusters_and_outliers() -> None:
    x, y = normal(1, 60, 5), normal(1, 140, 5, seed=1)
    x[:, ::2] += 1e4
    y[:, ::2] += 1e4
    assert_all(x, y, False)
    x, y = normal(1, 60, 5), normal(1, 140, 5, seed=1)
    x[0, 7], y[0, 3], y[0, 5] = 1e6, 3e4, -1e25
    for squared in (False, True):
        assert_logsumexp(x, y[:, :5], torch.zeros(1, 5).double(), per_head(1.0), squared)
        assert_argmin(x, y, torch.zeros(1, 140).double(), None, squared)


def test_all_codes_equal_and_ties_to_the_lowest_index() -> None:
    x, y = normal(1, 40, 3), normal(1, 300, 3, seed=1)
    y[:] = y[:, :1]
    assert_logsumexp(x, y, torch.zeros(1, 300).double(), per_head(2.0), False)
    assert_sums(x, y, per_head(0.5))
    bias = torch.zeros(1, 300, dtype=torch.float64)
    assert (pair_argmin(x, y, bias, per_head(0), False, 0, 0) == 0).all()
    bias[:, :131] = 1e-12
    assert (pair_argmin(x, y, bias, per_head(0), True, 0, 0) == 131).all()
    assert_argmin(x, y, bias, per_head(1.0), seed=9)


def test_values_one_rounding_apart() -> None:
    x, y = torch.zeros(1, 2, 1), torch.ones(1, 140, 1)
    bias = torch.zeros(1, 140, dtype=torch.float64)
    bias[0, 137], bias[0, 77] = -(2.0**-53), -(2.0**-54)  # 1 - 2^-54 rounds to 1
    assert pair_argmin(x, y, bias, per_head(0), False, 0, 0).tolist() == [[137, 137]]


def test_weights_far_apart_and_of_no_account() -> None:
    x, y = normal(1, 30, 4), normal(1, 280, 4, seed=1)
    weights = 1e5 + 100 * normal(1, 280, seed=2, dtype=torch.float64)
    out = pair_logsumexp(x, y, weights, per_head(1.0), False)
    same = pair_logsumexp(x, y, weights - 1e5, per_head(1.0), False)
    torch.testing.assert_close(out - 1e5, same, rtol=0, atol=1e-4)
    assert_logsumexp(x, y, weights - 1e5, per_head(1.0), False)
    weights[:, 130:] = -math.inf
    assert_logsumexp(x, y, weights, per_head(1.0), False)
    weights[:] = -math.inf
    assert (pair_logsumexp(x, y, weights, per_head(1.0), False) == -math.inf).all()


def test_rising_scores() -> None:
    """The reference is raised again and again, in every thread."""
    x, y = torch.zeros(1, 5, 1), torch.arange(500.0).flip(0)[None, :, None]
    assert_logsumexp(x, y, torch.zeros(1, 500, dtype=torch.float64), per_head(30.0), False)
    assert_logsumexp(x, y, torch.zeros(1, 500, dtype=torch.float64), per_head(0.0), False)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    x, y = normal(1, 140, 6), normal(1, 150, 6, seed=1)
    weights, one, none = torch.zeros(1, 150, dtype=torch.float64), per_head(1.0), per_head(0.0)
    x[0, 3, 2] = bad
    for squared in (False, True):
        out = pair_logsumexp(x, y, weights, one, squared)
        assert out[0].isnan().nonzero().tolist() == [[3]]
        assert_argmin(x, y, weights, none, squared)
        assert_argmin(x, y, weights, one, squared)
    assert pair_sums(x, y, none).isnan().all()
    y[0, 5, 1] = bad
    y[0, 0, 2] = bad
    assert pair_logsumexp(x, y, weights, one, False).isnan().all()
    assert_argmin(x, y, weights, none)
    assert_argmin(x[:, :3], y, weights, one)
    weights[0, 9] = bad
    assert_argmin(x[:, 4:], y, weights, none)
    if bad != -math.inf:
        assert pair_logsumexp(x[:, 4:], y[:, 6:], weights[:, 6:], one, False).isnan().all()
    y[:] = math.nan
    assert (pair_argmin(x, y, weights, none, False, 0, 0) == 0).all()


def test_nothing_to_reduce() -> None:
    one = per_head(1.0, 1.0)
    for N, M in ((0, 5), (5, 0), (0, 0)):
        x, y, weights = normal(2, N, 3), normal(2, M, 3), torch.zeros(2, M, dtype=torch.float64)
        assert torch.equal(pair_logsumexp(x, y, weights, one, False), torch.full((2, N), -math.inf).double())
        assert torch.equal(pair_sums(x, y, one), torch.zeros(2, 2, dtype=torch.float64))
        assert torch.equal(pair_argmin(x, y, weights, one, False, 0, 0), torch.zeros(2, N, dtype=torch.int64))
    x = normal(0, 4, 3)
    assert pair_logsumexp(x, x, torch.zeros(0, 4).double(), per_head(), False).shape == (0, 4)
    assert pair_sums(x, x, per_head()).shape == (0, 2)


# ---- determinism and chance ----


def test_the_same_bits_under_every_schedule(kernel: str) -> None:
    x, y = normal(2, 140, 20), normal(2, 400, 20, seed=1)
    weights, scale = normal(2, 400, seed=2, dtype=torch.float64), per_head(4.0, 5.0)
    found = []
    for schedule, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
        if kernel.startswith("simt"):
            simt.module().set_schedule(schedule, seed)
        found.append(
            (
                pair_logsumexp(x, y, weights, scale, False),
                pair_sums(x, y, scale),
                pair_argmin(x, y, weights, 1 / scale, False, 1, 2),
            )
        )
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_draw_depends_on_seed_head_row_and_code_alone() -> None:
    x, y, noise = normal(2, 150, 4), normal(2, 260, 4, seed=1), per_head(1.0, 1.0)
    bias = torch.zeros(2, 260, dtype=torch.float64)
    drawn = pair_argmin(x, y, bias, noise, False, 5, 100)
    assert torch.equal(pair_argmin(x[:, 60:], y, bias, noise, False, 5, 160), drawn[:, 60:])
    assert not torch.equal(pair_argmin(x, y, bias, noise, False, 6, 100), drawn)
    assert not torch.equal(pair_argmin(x, y, bias, noise, False, 5, 101), drawn)


def test_draws_follow_their_row_of_the_plan() -> None:
    """Of 6 codes at equal cost but for their bias, each comes as often as its exponential says (chi-square)."""
    N, bias = 2000, -torch.tensor([[0.05, 0.1, 0.15, 0.2, 0.25, 0.25]], dtype=torch.float64).log()
    drawn = pair_argmin(torch.zeros(1, N, 1), torch.zeros(1, 6, 1), bias, per_head(1.0), False, 11, 0)
    expected = N * (-bias[0]).exp()
    counts = torch.bincount(drawn[0], minlength=6)
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # 0.1 % of chi-square with 5 degrees


# ---- on a GPU ----


def test_more_than_2_to_the_31_pairs(kernel: str) -> None:
    if kernel.startswith("simt"):
        pytest.skip("too large for the interpreter")
    x, y = normal(1, 70000, 2), normal(1, 40000, 2, seed=1)
    out = pair_logsumexp(x, y, torch.zeros(1, 40000, dtype=torch.float64), per_head(0.0), False)
    torch.testing.assert_close(out, torch.full_like(out, math.log(40000)), rtol=0, atol=1e-5)
    some = torch.arange(0, 70000, 997)
    indices = pair_argmin(x, y, torch.zeros(1, 40000, dtype=torch.float64), per_head(0.0), False, 0, 0)
    assert torch.equal(indices[:, some], costs(x[:, some], y, False).argmin(2))


def test_capture_in_a_graph_without_waiting(kernel: str) -> None:
    if kernel.startswith("simt"):
        pytest.skip("needs a GPU")
    x, y = normal(2, 300, 16), normal(2, 500, 16, seed=1)
    weights, scale = normal(2, 500, seed=2, dtype=torch.float64), per_head(4.0, 5.0)

    def call() -> tuple[Tensor, ...]:
        return (
            pair_logsumexp(x, y, weights, scale, False),
            pair_sums(x, y, scale),
            pair_argmin(x, y, weights, scale, False, 1, 2),
        )

    with no_waiting_for_gpu():
        call()
    assert_graph_replays(call, x, y)
