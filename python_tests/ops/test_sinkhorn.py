"""sinkhorn against the published recursion and the definition in float64."""

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import cases
from vqdm_cuda import nearest_code, reference, sinkhorn
from vqdm_cuda.ops import sinkhorn as sinkhorn_module
from vqdm_cuda.reference.sinkhorn import gumbel, scores

F64 = torch.float64
# By what two scores may be confused: the promise of the op.
GAP = {torch.float32: 1e-4, F64: 1e-9}


def problem(seed: int, N: int, K: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Codes that lie more or less beside the features, and are as wide, wider or narrower."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(N, d, generator=generator, dtype=F64) * (0.5 + seed % 3)
    e = torch.randn(K, d, generator=generator, dtype=F64) + seed % 4
    return z.to(dtype), e.to(dtype)


def published(z: Tensor, e: Tensor, num_iters: int = 5) -> Tensor:  # [N, d], [K, d] -> log plan [N, K]
    """OptVQ's linear recursion with its constants, in float64, of one process."""
    A = distances(z, e)
    A = (A - A.mean()) / (A.std() + 1e-6)
    A = A - A.min()
    Q = torch.exp(-10 * A).T.contiguous()
    K, B = Q.shape
    Q /= Q.sum() + 1e-8
    for _ in range(num_iters):
        Q /= Q.sum(1, keepdim=True) + 1e-8
        Q /= K
        Q /= Q.sum(0, keepdim=True) + 1e-8
        Q /= B
    return Q.T.log()


def distances(z: Tensor, e: Tensor) -> Tensor:
    return torch.cdist(z.double(), e.double(), compute_mode="donot_use_mm_for_euclid_dist")


def assert_best(indices: Tensor, score: Tensor, gap: float) -> None:
    """The index of every row's best score, where it is better than the second by more than the gap."""
    best, expected = score.max(1)
    chosen = score.gather(1, indices[:, None])[:, 0]
    assert ((indices == expected) | (best - chosen <= gap)).all()


# --- the definition and the published recursion ---------------------------------------------------------------------

SIZES = [
    (256, 64, 2),
    (1000, 700, 8),
    (900, 1500, 32),
    (256, 1024, 17),
    (1500, 64, 3),
    (400, 1200, 64),
    (500, 500, 5),
]
PROBLEMS = [(*SIZES[seed % 7], seed) for seed in range(19)] + [(4096, 8192, 64, 19)]


@pytest.mark.parametrize(("N", "K", "d", "seed"), PROBLEMS)
def test_with_its_floor_the_indices_are_those_of_the_published_recursion(N, K, d, seed):
    dtype = (torch.float32, F64)[seed % 2]
    z, e = problem(seed, N, K, d, dtype)
    _, _, indices = sinkhorn(z, e, floor=1e-8, stats="local")
    assert_best(indices, published(z, e), GAP[dtype])


@pytest.mark.parametrize(("N", "K", "d", "seed"), PROBLEMS[:-1])
@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_potentials_and_indices_are_those_of_the_definition(N, K, d, seed, cost):
    dtype = (torch.float32, F64)[seed % 2]
    z, e = problem(seed, N, K, d, dtype)
    f, g, indices = sinkhorn(z, e, cost=cost)
    f64, g64, _ = reference.sinkhorn(z.double(), e.double(), cost=cost)
    relative = {torch.float32: 1e-5, F64: 1e-12}[dtype]
    for ours, exact in ((f, f64), (g, g64)):
        assert ours.dtype == dtype
        cases.assert_close(ours, exact, relative * max(1.0, float(f64.abs().max())), scale=1.0)
    S = scores(z, e, 0.1, cost, "std", 0.0)
    assert_best(indices, S + g64 / 0.1, GAP[dtype])


@pytest.mark.parametrize("normalize", ["std", "dim", None])
@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("floor", [0.0, 1e-8])
@pytest.mark.parametrize("eps", [1e-3, 0.1, 10.0, 1e3])
def test_every_option_at_every_temperature(normalize, cost, floor, eps):
    for dtype, relative in ((torch.float32, 1e-5), (F64, 1e-11)):
        z, e = problem(4, 90, 75, 6, dtype)
        options: dict[str, Any] = {"eps": eps, "cost": cost, "normalize": normalize, "floor": floor}
        f, g, indices = sinkhorn(z, e, **options)
        f64, g64, _ = reference.sinkhorn(z.double(), e.double(), **options)
        largest = max(1.0, float(f64.abs().max()), float(g64.abs().max()))
        cases.assert_close(f, f64, relative * largest, scale=1.0)
        cases.assert_close(g, g64, relative * largest, scale=1.0)
        assert_best(indices, scores(z, e, **options) + g64 / eps, 4 * relative * largest / eps)


def test_the_plan_has_the_marginals():
    z, e = problem(1, 300, 200, 8, F64)
    f, g, _ = sinkhorn(z, e, num_iters=50)
    c = distances(z, e)
    plan = torch.exp((f[:, None] + g - c / (c.std() + 1e-6)) / 0.1) / (300 * 200)
    torch.testing.assert_close(plan.sum(1), torch.full((300,), 1 / 300, dtype=F64), rtol=1e-10, atol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((200,), 1 / 200, dtype=F64), rtol=0.02, atol=0)


def test_many_iterations_do_not_drift():
    z, e = problem(1, 100, 50, 4)
    f, g, _ = sinkhorn(z, e, num_iters=300)
    f64, g64, _ = reference.sinkhorn(z.double(), e.double(), num_iters=300)
    cases.assert_close(f, f64, 2e-5, scale=1.0)
    cases.assert_close(g, g64, 2e-5, scale=1.0)


def test_without_iterations_it_is_the_nearest_code():
    z, e = problem(3, 200, 100, 5)
    for cost in ("euclidean", "sqeuclidean"):
        _, _, indices = sinkhorn(z, e, num_iters=0, cost=cost)
        assert torch.equal(indices, nearest_code(z, e)[1])


# --- hard cases -----------------------------------------------------------------------------------------------------


def test_outliers_that_underflow_in_the_published_code_get_the_code_of_their_potentials():
    z, e = problem(5, 300, 200, 8)
    z[:4] += torch.tensor([60.0, -80.0, 200.0, 1000.0])[:, None]
    log_plan = published(z.float(), e.float())
    A = distances(z, e)
    A = (A - A.mean()) / (A.std() + 1e-6)
    underflow = torch.exp(-10 * (A - A.min()).float()).sum(1) == 0
    assert 1 <= underflow.sum() <= 4  # their rows of the plan are zeros in float32, whose argmax is code 0
    f, g, indices = sinkhorn(z, e, floor=1e-8)
    assert f.isfinite().all()
    assert g.isfinite().all()
    assert_best(indices, log_plan.where(log_plan > -math.inf, -1e4), 1e-4)
    f64, g64, _ = reference.sinkhorn(z.double(), e.double(), floor=1e-8)
    cases.assert_close(f, f64, 1e-5 * float(f64.abs().max()), scale=1.0)
    cases.assert_close(g, g64, 1e-5 * float(f64.abs().max()), scale=1.0)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_an_offset_of_everything_changes_little_more_than_the_rounding_of_the_input(offset):
    z, e = problem(2, 200, 150, 6)
    z, e = z + offset, e + offset
    f, g, indices = sinkhorn(z, e)
    f64, g64, _ = reference.sinkhorn(z.double(), e.double())
    cases.assert_close(f, f64, 1e-5 * max(1.0, float(f64.abs().max())), scale=1.0)
    cases.assert_close(g, g64, 1e-5 * max(1.0, float(f64.abs().max())), scale=1.0)
    assert_best(indices, scores(z, e, 0.1, "euclidean", "std", 0.0) + g64 / 0.1, 1e-4)


def test_features_on_codes_and_far_clusters_lose_no_digits_to_the_root():
    codes = torch.randn(60, 8) + 1e4 * torch.randint(0, 2, (60, 1)).sub(0.5).sign()
    features = codes[torch.randint(0, 60, (100,))] + 1e-2 * torch.randint(0, 2, (100, 1)) * torch.randn(100, 8)
    for eps in (0.1, 1e-3):
        f, g, indices = sinkhorn(features, codes, eps=eps)
        f64, g64, _ = reference.sinkhorn(features.double(), codes.double(), eps=eps)
        cases.assert_close(f, f64, 1e-5 * max(1.0, float(f64.abs().max())), scale=1.0)
        cases.assert_close(g, g64, 1e-5 * max(1.0, float(f64.abs().max())), scale=1.0)
        assert_best(indices, scores(features, codes, eps, "euclidean", "std", 0.0) + g64 / eps, 2e-5 / eps)


def far_code(distance: float) -> Tensor:
    e = torch.randn(60, 8)
    e[-1] += distance
    return e


BEYOND_FLOAT32: dict[str, tuple[Any, ...]] = {
    "codes far from all features": (lambda: (torch.randn(80, 16), torch.randn(60, 16) + 1000), {}),
    "the same, squared": (lambda: (torch.randn(80, 16), torch.randn(60, 16) + 1000), {"cost": "sqeuclidean"}),
    "features close together": (lambda: (1e-3 * torch.randn(80, 16), torch.randn(60, 16) + 1), {}),
    "high dimension, low temperature": (lambda: (torch.randn(80, 500), torch.randn(60, 500)), {"eps": 0.01}),
    "high temperature": (lambda: (torch.randn(80, 4), torch.randn(60, 4)), {"eps": 1e3}),
    "one row at high temperature": (lambda: (torch.randn(1, 4), torch.randn(60, 4)), {"eps": 1e3}),
    "one far code": (lambda: (torch.randn(80, 8), far_code(1e5)), {"normalize": "dim"}),
    "one far code, squared": (
        lambda: (torch.randn(80, 8), far_code(1e3)),
        {"cost": "sqeuclidean", "normalize": None, "eps": 0.01},
    ),
    "squares that overflow": (lambda: (1e18 * torch.randn(80, 170), 1e18 * torch.randn(60, 170)), {}),
    "one square that overflows": (lambda: (torch.randn(80, 8), far_code(2e19)), {}),
    "squares that underflow": (
        lambda: (1e-20 * torch.randn(80, 8), 1e-20 * torch.randn(60, 8)),
        {"normalize": None, "eps": 1e-22},
    ),
    "equal costs with a floor": (lambda: (torch.full((11, 64), 0.685), torch.full((3, 64), -1.3)), {"floor": 1e-8}),
}


@pytest.mark.parametrize("name", BEYOND_FLOAT32)
def test_what_float32_cannot_hold_is_computed_in_float64(name):
    make, options = BEYOND_FLOAT32[name]
    z, e = make()
    f, g, indices = sinkhorn(z, e, **options)
    f64, g64, _ = reference.sinkhorn(z.double(), e.double(), **options)
    # A rounding of each potential to float32, and little more.
    cases.assert_close(f, f64, 5e-7, scale=max(float(f64.abs().max()), 1e-3))
    cases.assert_close(g, g64, 5e-7, scale=max(float(g64.abs().max()), 1e-3))
    S = scores(z, e, **{"eps": 0.1, "cost": "euclidean", "normalize": "std", "floor": 0.0, **options})
    assert_best(indices, S + g64 / options.get("eps", 0.1), 1e-6)


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("floor", [0.0, 1e-8])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (1, 9), (9, 1), (3, 500), (500, 3)])
def test_few_features_or_codes(cost, floor, N, K):
    z, e = problem(6, N, K, 4)
    f, g, indices = sinkhorn(z, e, cost=cost, floor=floor)
    f64, g64, _ = reference.sinkhorn(z.double(), e.double(), cost=cost, floor=floor)
    largest = max(1.0, float(f64.abs().max()), float(g64.abs().max()))
    cases.assert_close(f, f64, 1e-5 * largest, scale=1.0)
    cases.assert_close(g, g64, 1e-5 * largest, scale=1.0)
    assert_best(indices, scores(z, e, 0.1, cost, "std", floor) + g64 / 0.1, 1e-4 * largest)


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_equal_costs_spread_evenly(cost):
    """A standard deviation of 0 leaves 1e-6: all scores of a row are equal, and the first code has it."""
    f, g, indices = sinkhorn(torch.full((7, 3), 0.5), torch.full((5, 3), -1.5), cost=cost)
    assert f.isfinite().all()
    assert g.isfinite().all()
    assert (g == g[0]).all()
    assert (indices == 0).all()


def test_of_equal_codes_the_first_is_chosen_and_all_share_the_mass():
    z, e = problem(7, 400, 30, 5)
    e[20:] = e[:10]
    _, g, indices = sinkhorn(z, e)
    assert torch.equal(g[20:], g[:10])
    assert (indices < 20).all()


def test_no_features():
    f, g, indices = sinkhorn(torch.randn(2, 0, 3), torch.randn(4, 3))
    assert f.shape == (2, 0)
    assert indices.shape == (2, 0)
    assert torch.equal(g, torch.zeros(2, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_own_head_alone(bad):
    z, e = torch.randn(2, 30, 4), torch.randn(2, 20, 4)
    expected = sinkhorn(z, e)
    z[1, 3, 2] = bad
    f, g, indices = sinkhorn(z, e)
    for got, clean in zip((f, g, indices), expected, strict=True):
        assert torch.equal(got[0], clean[0])
    assert f[1].isnan().all()
    assert g[1].isnan().all()
    assert (indices[1] == 0).all()


# --- types, layouts, heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_taken_at_their_value(dtype):
    z, e = (t.to(dtype) for t in problem(8, 120, 80, 7))
    for ours, exact in zip(sinkhorn(z, e), sinkhorn(z.float(), e.float()), strict=True):
        assert torch.equal(ours, exact)
    assert sinkhorn(z, e.double())[0].dtype == F64


def test_heads_broadcast_and_strides_do_not_matter():
    z, e = torch.randn(3, 2, 40, 6), torch.randn(2, 25, 6)
    whole = sinkhorn(z, e)
    strided = sinkhorn(z.transpose(1, 2).contiguous().transpose(1, 2), e.mT.contiguous().mT)
    for got, again in zip(whole, strided, strict=True):
        assert torch.equal(got, again)
    for i in range(3):
        for h in range(2):
            for got, one in zip(whole, sinkhorn(z[i, h], e[h]), strict=True):
                assert torch.equal(got[i, h], one)


def test_draws_with_much_noise_in_float32_are_those_in_float64():
    """At this temperature a draw's limit has more digits than float32."""
    x, y = torch.zeros(1, 200_000, 1), torch.tensor([[[0.0], [1.0]]])
    noise, bias = torch.full((1,), 1e5, dtype=F64), torch.zeros(1, 2, dtype=F64)
    narrow, wide = (
        torch.ops.vqdm.pair_argmin(x.to(t), y.to(t), bias, noise, False, 1, 4_300_000) for t in (torch.float32, F64)
    )
    assert torch.equal(narrow, wide)


def test_threads_and_runs_do_not_matter():
    z, e = problem(9, 700, 900, 20)
    threads = torch.get_num_threads()
    for options in ({}, {"cost": "sqeuclidean"}, {"seed": 3, "eps": 1.0}):
        expected = sinkhorn(z, e, **options)
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                for got, first in zip(sinkhorn(z, e, **options), expected, strict=True):
                    assert torch.equal(got, first)
        finally:
            torch.set_num_threads(threads)


OPTIONS: list[dict[str, Any]] = [{}, {"floor": 1e-8}, {"seed": 3, "eps": 1.0}]


@pytest.mark.parametrize("device", [d for d in cases.KERNEL_DEVICES if d != "cpu"], indirect=True)
def test_the_cuda_kernels_step_by_step(device, monkeypatch):
    """Without the sweeps of the CPU, which the host would otherwise take for them."""
    monkeypatch.setattr(sinkhorn_module, "_in_one_sweep", lambda z: False)
    for cost in ("euclidean", "sqeuclidean"):
        for options in OPTIONS:
            z, e = problem(12, 150, 90, 6)
            f, g, indices = (t.cpu() for t in sinkhorn(z.to(device), e.to(device), cost=cost, **options))
            f64, g64, expected = reference.sinkhorn(z.double(), e.double(), cost=cost, **options)
            cases.assert_close(f, f64, 1e-5 * max(1.0, float(f64.abs().max())), scale=1.0)
            cases.assert_close(g, g64, 1e-5 * max(1.0, float(f64.abs().max())), scale=1.0)
            assert (indices != expected).sum() <= 1


def test_without_sweeps_the_cpu_gives_the_same(monkeypatch):
    z, e = problem(13, 200, 120, 9, F64)
    for cost in ("euclidean", "sqeuclidean"):
        swept = sinkhorn(z, e, cost=cost)
        with monkeypatch.context() as patch:
            patch.setattr(sinkhorn_module, "_in_one_sweep", lambda z: False)
            stepped = sinkhorn(z, e, cost=cost)
        cases.assert_close(swept[0], stepped[0], 1e-13)
        cases.assert_close(swept[1], stepped[1], 1e-13)
        assert torch.equal(swept[2], stepped[2])


@pytest.mark.parametrize("kernel", ["portable", "avx2"])
def test_every_instruction_set(kernel):
    program = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]}
import torch
from vqdm_cuda import reference, sinkhorn
torch.manual_seed(0)
for dtype, relative in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    for d in (2, 5, 33):  # (on a line, distances less potentials tie)
        z, e = torch.randn(150, d, dtype=dtype), 2 * torch.randn(90, d, dtype=dtype) + 1
        for cost in ("euclidean", "sqeuclidean"):
            for seed in (None, 4):
                ours, exact = (run(z, e, cost=cost, seed=seed) for run in (sinkhorn, reference.sinkhorn))
                largest = max(1, float(exact[0].abs().max()))
                for a, b in zip(ours[:2], exact[:2]):
                    assert (a - b).abs().max() <= relative * largest
                assert (ours[2] != exact[2]).sum() <= 1
print("checked")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"VQDM_CPU_KERNEL": kernel},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "checked", ran.stderr


def test_memory_stays_far_below_the_matrix():
    program = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]}
import resource
import torch
from vqdm_cuda import sinkhorn
torch.set_num_threads(2)
z, e = torch.randn(4096, 32), torch.randn(8192, 32)
sinkhorn(z[:64], e[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sinkhorn(z, e)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(ran.stdout) * 1024 < 4096 * 8192 * 4 / 10


# --- draws from the plan --------------------------------------------------------------------------------------------


def test_draws_are_those_of_the_definition():
    for dtype in (torch.float32, F64):
        z, e = problem(10, 300, 65, 4, dtype)
        for cost in ("euclidean", "sqeuclidean"):
            for seed in (0, 7, -1, 2**40 + 3):
                expected = reference.sinkhorn(z, e, eps=1.0, cost=cost, seed=seed)[2]
                assert torch.equal(sinkhorn(z, e, eps=1.0, cost=cost, seed=seed)[2], expected)


def test_draws_follow_the_plan():
    """Chi-square of 20,000 draws of one row, made as 20,000 equal rows (whose plan is then one for all)."""
    e = torch.randn(12, 3, dtype=F64)
    z = torch.randn(3, dtype=F64).expand(20_000, 3)
    f, g, indices = sinkhorn(z, e, eps=0.5, num_iters=1, normalize=None, seed=1)
    log_p = (f[0] + g - distances(z[:1], e)[0]) / 0.5
    p = log_p.softmax(0)
    counts = torch.bincount(indices, minlength=12).double()
    chi2 = ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum()
    assert chi2 < 31.3  # 99.9 % of the distribution with 11 degrees of freedom
    other = sinkhorn(z, e, eps=0.5, num_iters=1, normalize=None, seed=2)[2]
    assert (other != indices).float().mean() > 0.5
    again = sinkhorn(z, e, eps=0.5, num_iters=1, normalize=None, seed=1)[2]
    assert torch.equal(again, indices)


def test_the_generator_is_philox():
    """The known answer of Philox4x32-10 for counter and key 0 (Random123, kat_vectors)."""
    words = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=F64)
    expected = -torch.log(-torch.log((words + 0.5) * 2.0**-32))
    assert torch.equal(gumbel(0, 0, 1, 4)[0], expected)


# --- torch ----------------------------------------------------------------------------------------------------------


def test_no_gradient_comes_out():
    z, e = torch.randn(20, 3, requires_grad=True), torch.randn(10, 3, requires_grad=True)
    assert not any(t.requires_grad for t in sinkhorn(z, e))


@pytest.mark.parametrize("options", [{}, {"cost": "sqeuclidean", "floor": 1e-8}, {"seed": 5, "normalize": "dim"}])
def test_one_graph_under_compile(options):
    cases.assert_compiles(lambda z, e: sinkhorn(z, e, **options), torch.randn(2, 30, 4), torch.randn(20, 4))


def test_autocast_changes_nothing():
    z, e = problem(11, 60, 40, 4)
    expected = sinkhorn(z, e)
    with torch.autocast("cpu", torch.bfloat16):
        for got, exact in zip(sinkhorn(z, e), expected, strict=True):
            assert torch.equal(got, exact)


X, Y, ONE = torch.randn(2, 9, 3), torch.randn(2, 7, 3), torch.ones(2, dtype=F64)
LOCAL_STEPS: dict[str, tuple[Any, ...]] = {
    "pair_logsumexp": (X, Y, torch.randn(2, 7, dtype=F64), ONE, False),
    "pair_sums": (X, Y, ONE),
    "pair_argmin": (X, Y, torch.randn(2, 7, dtype=F64), ONE, True, 3, 0),
    "pair_sweep": (
        X,
        Y,
        torch.randn(2, 7).double() - 9,
        torch.zeros(2, 9, dtype=F64),
        ONE,
        0 * ONE,
        ONE[0],
        False,
        -9.0,
    ),
}


@pytest.mark.parametrize("name", LOCAL_STEPS)
def test_local_steps_are_registered_well(name):
    torch.library.opcheck(getattr(torch.ops.vqdm, name).default, LOCAL_STEPS[name])


@pytest.mark.parametrize("name", LOCAL_STEPS)
def test_local_steps_check_what_memory_safety_needs(name):
    op, (x, y, *rest) = getattr(torch.ops.vqdm, name), LOCAL_STEPS[name]
    for bad in (
        (x[0], y),
        (x, y[:1]),
        (x, y[..., :2]),
        (x[..., :0], y[..., :0]),
        (x, y[:, :6] if name != "pair_sums" else y[0]),
    ):
        with pytest.raises(ValueError, match=name):
            op(*bad, *rest)
    with pytest.raises(ValueError, match="float64"):
        op(x, y, rest[0].float(), *rest[1:])


LIST: Any = [1]
TEXT: Any = "0.1"
FLOAT: Any = 2.0
ERRORS: list[cases.Bad] = [
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 5)), ValueError,
     "sinkhorn: expected z [..., N, d] and e [..., K, d] with equal d, got [3, 4] and [3, 5]"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(0, 4)), ValueError,
     "sinkhorn: expected e [..., K, d] with K >= 1 and d >= 1, got [0, 4]"),
    (lambda: sinkhorn(torch.randn(2, 3, 4), torch.randn(3, 3, 4)), ValueError,
     "sinkhorn: expected leading dimensions that broadcast, got [2, 3, 4], [3, 3, 4]"),
    (lambda: sinkhorn(torch.zeros(3, 4).long(), torch.randn(3, 4)), TypeError, "sinkhorn: expected z of dtype float64"),
    (lambda: sinkhorn(torch.randn(3, 4), LIST), TypeError, "sinkhorn: expected e to be a tensor, got list"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), cost="cosine"), ValueError,
     "sinkhorn: expected cost to be one of ('euclidean', 'sqeuclidean'), got 'cosine'"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), normalize="mean"), ValueError,
     "sinkhorn: expected normalize to be one of ('std', 'dim', None), got 'mean'"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), stats="both"), ValueError,
     "sinkhorn: expected stats to be one of ('global', 'local'), got 'both'"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), eps=0.0), ValueError,
     "sinkhorn: expected eps > 0 and floor >= 0, both finite, got 0.0 and 0.0"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), floor=-1.0), ValueError,
     "sinkhorn: expected eps > 0 and floor >= 0, both finite, got 0.1 and -1.0"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), eps=TEXT), TypeError,
     "sinkhorn: expected eps to be a number, got str"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), num_iters=-1), ValueError,
     "sinkhorn: expected num_iters from 0 to 2^31, got -1"),
    (lambda: sinkhorn(torch.randn(3, 4), torch.randn(3, 4), num_iters=FLOAT), TypeError,
     "sinkhorn: expected num_iters to be an int, got float"),
]  # fmt: skip


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize("bad", ERRORS, ids=lambda bad: bad[2][:60])
def test_errors_say_what_was_expected(bad, fake):
    cases.assert_raises(bad, fake=fake)
