"""nearest_code on inputs drawn at random, against its definition bit for bit, on the CPU and by both CUDA paths.

Hypothesis draws what an input is like: sizes, types, layouts, offsets to 1e6, scales from 1e-30 to 1e18, duplicates,
near-ties, numbers that are not finite; and how it is computed: threads, split of the rows into calls, schedule.
`make soak` runs the full counts, `make test` 2 % of them.
"""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import simt
from cases import DTYPES, NO_GPU, NO_SIMT
from vqdm_cuda import nearest_code, reference

CASES_ON_CPU = 100_000
CASES_PER_CUDA_PATH = 2_000
SHARE_IN_TEST = 50  # one in so many


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal_codes(z: Tensor, e: Tensor, seed: int) -> Tensor:
    return e


def lattice(z: Tensor, e: Tensor, seed: int) -> Tensor:
    """Many exact ties between different codes."""
    z.copy_((2 * z).round())
    return e.round()


def duplicates(z: Tensor, e: Tensor, seed: int) -> Tensor:
    distinct = e[: max(1, len(e) // 3)]
    return distinct[torch.randint(len(distinct), (len(e),), generator=torch.Generator().manual_seed(seed))]


def near_ties(z: Tensor, e: Tensor, seed: int) -> Tensor:
    """Codes at almost the same distance from some row: relative gaps from 2^-5 to 2^-60."""
    if len(z) == 0:
        return e
    direction = torch.nn.functional.normalize(e, dim=1)
    gap = 2.0 ** -(5 + 55 * torch.rand(len(e), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return z[torch.arange(len(e)) % len(z)] + direction * (1 + gap)


def collapsed(z: Tensor, e: Tensor, seed: int) -> Tensor:
    return e[:1] + 1e-7 * e


def outliers(z: Tensor, e: Tensor, seed: int) -> Tensor:
    e[:: max(3, len(e) // 4)] *= 1e6
    return e


def two_clusters(z: Tensor, e: Tensor, seed: int) -> Tensor:
    z[::2] += 1e4
    z[1::2] -= 1e4
    e[::2] += 1e4
    e[1::2] -= 1e4
    return e


def magnitudes_apart(z: Tensor, e: Tensor, seed: int) -> Tensor:
    """Rows and codes from 2^-80 to 2^60, each of its own size."""
    generator = torch.Generator().manual_seed(seed)

    def sizes(n: int) -> Tensor:
        return 2.0 ** torch.randint(-80, 60, (n, 1), generator=generator).double()

    z *= sizes(len(z))
    return e * sizes(len(e))


FAMILIES = (normal_codes, lattice, duplicates, near_ties, collapsed, outliers, two_clusters, magnitudes_apart)


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def every_other_column(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def every_third_row(x: Tensor) -> Tensor:
    return x.repeat_interleave(3, -2)[..., ::3, :]


def misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


LAYOUTS = (torch.Tensor.contiguous, transposed, every_other_column, every_third_row, misaligned)

CASE = st.fixed_dictionaries(
    {
        "N": st.integers(0, 40),
        "K": st.integers(1, 200),
        "d": st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 100])),
        "seed": st.integers(0, 2**31),
        "family": st.sampled_from(FAMILIES),
        "offset": st.sampled_from([0.0, 0.0, 3.0, 1e2, 1e4, 1e6]),
        "scale": st.one_of(st.just(0), st.integers(-30, 18)),  # power of ten
        "z_dtype": st.sampled_from(DTYPES),
        "e_dtype": st.sampled_from(DTYPES),
        "z_layout": st.sampled_from(LAYOUTS),
        "e_layout": st.sampled_from(LAYOUTS),
        "bias": st.sampled_from([None, None, 0.0, 1.0, 1e4, "powers"]),  # its scale beside the codes'
        "heads": st.sampled_from([((), ()), ((), ()), ((2,), ()), ((2,), (2,)), ((2, 1), (3,))]),  # of z and of e
        "not_finite": st.sampled_from([None, None, None, float("nan"), float("inf"), -float("inf")]),
    }
)


def inputs(case: dict) -> tuple[Tensor, Tensor, Tensor | None]:
    N, K, d, seed = case["N"], case["K"], case["d"], case["seed"]
    (z_heads, e_heads), scale = case["heads"], 10.0 ** case["scale"]
    z, e = drawn(seed, N, d), drawn(seed + 1, K, d)
    e = case["family"](z, e, seed)
    z, e = scale * (z + case["offset"]), scale * (e + case["offset"])
    if case["not_finite"] is not None:
        z[N // 2 : N // 2 + 1, 0] = case["not_finite"]
        e[K // 3, d - 1] = case["not_finite"]
    z = (z * torch.linspace(1, 2, 3)[: z_heads[0], None, None] if z_heads else z).reshape(*z_heads, N, d)
    e = (e + torch.linspace(0, scale, 3)[: e_heads[0], None, None] if e_heads else e).reshape(*e_heads, K, d)
    bias = None
    if case["bias"] == "powers":  # each of its own size
        bias = drawn(seed + 2, K).sign() * scale**2 * 2.0 ** (60 * drawn(seed + 3, K)).round()
    elif case["bias"] is not None:
        bias = case["bias"] * scale**2 * drawn(seed + 2, K)
    return case["z_layout"](z.to(case["z_dtype"])), case["e_layout"](e.to(case["e_dtype"])), bias


def assert_exact(case: dict, split: int, device: str = "cpu", threads: int = 1) -> None:
    z, e, bias = inputs(case)
    expected = reference.nearest_code(z, e, bias)
    z, e, bias = z.to(device), e.to(device), None if bias is None else bias.to(device)
    torch.set_num_threads(threads)
    parts = [nearest_code(part, e, bias) for part in z.split(split, dim=-2)]
    torch.set_num_threads(1)
    for got, want in zip((torch.cat(p, dim=-1).cpu() for p in zip(*parts, strict=True)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def many(count: int):
    return settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


def check_on_cpu(count: int) -> None:
    @many(count)
    @given(CASE, st.sampled_from([1, 2, 7]), st.sampled_from([1, 7, 40]))
    def check(case: dict, threads: int, split: int) -> None:
        assert_exact(case, split, threads=threads)

    check()


def check_cuda_path(count: int, device: str) -> None:
    @many(count)
    @given(CASE, st.integers(0, 2**31), st.sampled_from([7, 40]))
    def check(case: dict, seed: int, split: int) -> None:
        with simt.kernels("random", seed) if device == "simt" else contextlib.nullcontext():
            assert_exact(case, split, "cpu" if device == "simt" else device)

    check()


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


PATHS = pytest.mark.parametrize("path", ["tensor_core", "portable"])
ON = pytest.mark.parametrize("device", [pytest.param("simt", marks=NO_SIMT), pytest.param("cuda", marks=NO_GPU)])


def test_on_the_cpu() -> None:
    check_on_cpu(CASES_ON_CPU // SHARE_IN_TEST)


def blocks(seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes in collapsed clusters, rows in runs of a kind: what one block of rows finds out must not show in others."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    N, K, d = 100 * pick(4, 16), pick(200, 2048), pick(1, 8)
    z, e = torch.randn(N, d, generator=generator), torch.randn(K, d, generator=generator)
    for _ in range(pick(0, 4)):
        first = pick(0, K - 1)
        e[first : first + pick(1, K // 2)] = e[pick(0, K - 1)].clone()
    near = e[pick(0, K - 1)] * (1 + 2.0 ** -pick(10, 23))
    e[pick(0, K - 1)] = near
    for first in range(0, N, 100):
        chosen = torch.randint(0, K, (2, min(pick(60, 400), N - first)), generator=generator)
        rows = slice(first, first + chosen.shape[1])
        kind = pick(0, 4)
        if kind == 0:
            z[rows] = e[chosen[0]]
        elif kind == 1:
            z[rows] = (e[chosen[0]] + e[chosen[1]]) / 2
        elif kind == 2:
            z[rows] = e[chosen[0, 0]] * (1 + 2.0 ** -pick(1, 20))
        elif kind == 3:
            z[rows] = z[first].clone()
    bias = torch.randn(K, generator=generator) * 2.0 ** -pick(0, 20) if pick(0, 2) == 0 else None
    return z, e, bias


def check_blocks_on_cpu(count: int) -> None:
    for seed in range(count):
        z, e, bias = blocks(seed)
        expected = reference.nearest_code(z, e, bias)
        torch.set_num_threads((1, 2, 7)[seed % 3])
        for got, want in zip(nearest_code(z, e, bias), expected, strict=True):
            assert torch.equal(got, want), f"blocks({seed})"


def test_blocks_on_the_cpu() -> None:
    check_blocks_on_cpu(2_000 // SHARE_IN_TEST)


@pytest.mark.slow
def test_blocks_on_the_cpu_for_long() -> None:
    check_blocks_on_cpu(2_000)


@PATHS
@ON
def test_by_cuda_kernels(path: str, device: str, monkeypatch) -> None:
    monkeypatch.setenv("VQDM_CUDA_KERNEL", path)
    check_cuda_path(CASES_PER_CUDA_PATH // SHARE_IN_TEST, device)


@pytest.mark.slow
def test_on_the_cpu_for_long() -> None:
    check_on_cpu(CASES_ON_CPU)


@pytest.mark.slow
@PATHS
@ON
def test_by_cuda_kernels_for_long(path: str, device: str, monkeypatch) -> None:
    monkeypatch.setenv("VQDM_CUDA_KERNEL", path)
    check_cuda_path(CASES_PER_CUDA_PATH, device)
