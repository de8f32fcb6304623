"""nearest_code against its definition in float64: the same index and the same bits of dist2, whatever the input."""

import contextlib
import itertools
import subprocess
import sys
import threading
import zlib

import pytest
import torch
from torch import Tensor

import cases
import simt
from cases import NO_GPU, NO_SIMT
from vqdm_cuda import nearest_code, reference

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    return x.to(dtype).to(torch.get_default_device())


# Both CUDA paths, on a GPU and on the host; see python_tests/simt.py for the device "simt".
KERNELS = [
    "cpu",
    *(pytest.param(f"simt {path}", marks=NO_SIMT) for path in ("tensor_core", "portable")),
    *(pytest.param(f"cuda {path}", marks=NO_GPU) for path in ("tensor_core", "portable")),
]


@pytest.fixture(autouse=True, params=KERNELS)
def kernel(request, monkeypatch):
    """Every test on every device and path: tensors are made there unless a test names another."""
    device, _, path = request.param.partition(" ")
    if request.node.get_closest_marker("cpu_only") and device != "cpu":
        pytest.skip("is about the CPU kernels, or too large for the interpreter")
    if path:
        monkeypatch.setenv("VQDM_CUDA_KERNEL", path)
    seed = zlib.crc32(request.node.name.encode())  # another order of threads and blocks for every test
    kernels = simt.kernels("random", seed) if device == "simt" else contextlib.nullcontext()
    with kernels, torch.device("cpu" if device == "simt" else device):
        yield request.param


def assert_exact(z: Tensor, e: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    dist2, indices = nearest_code(z, e, bias)
    expected_dist2, expected_indices = reference.nearest_code(z, e, bias)
    assert torch.equal(indices, expected_indices)
    assert dist2.dtype == expected_dist2.dtype
    assert torch.equal(dist2.nan_to_num(nan=-1.0), expected_dist2.nan_to_num(nan=-1.0))
    return dist2, indices


# ---- values ----


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 65, 100, 256])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (5, 2), (6, 63), (7, 64), (13, 65), (129, 1023), (400, 130)])
def test_every_shape(N: int, K: int, d: int) -> None:
    assert_exact(normal(N, d, seed=1), normal(K, d, seed=2))


@pytest.mark.parametrize(("z_dtype", "e_dtype"), list(itertools.product(FLOATING, FLOATING)))
def test_every_pair_of_dtypes(z_dtype: torch.dtype, e_dtype: torch.dtype) -> None:
    dist2, _ = assert_exact(normal(50, 9, dtype=z_dtype), normal(70, 9, seed=1, dtype=e_dtype))
    assert dist2.dtype == (torch.float64 if torch.float64 in (z_dtype, e_dtype) else torch.float32)


@pytest.mark.parametrize("dtype", FLOATING)
def test_bias_makes_a_power_diagram(dtype: torch.dtype) -> None:
    z, e, bias = normal(200, 6), normal(90, 6, seed=1), normal(90, seed=2, dtype=dtype) * 3
    _, indices = assert_exact(z, e, bias)
    assert not torch.equal(indices, nearest_code(z, e)[1])


@pytest.mark.parametrize(
    ("z_shape", "e_shape", "bias_shape"),
    [
        ((2, 3, 20, 5), (2, 3, 30, 5), (2, 3, 30)),
        ((3, 20, 5), (30, 5), None),
        ((20, 5), (4, 30, 5), (30,)),
        ((2, 1, 20, 5), (3, 30, 5), (2, 1, 30)),
        ((20, 5), (30, 5), (4, 30)),
    ],
)
def test_heads_broadcast(z_shape, e_shape, bias_shape) -> None:
    z, e = normal(*z_shape), normal(*e_shape, seed=1)
    bias = None if bias_shape is None else normal(*bias_shape, seed=2)
    assert_exact(z, e, bias)


# ---- the exactness contract on nasty input ----


@pytest.mark.parametrize("offset", [1e2, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_offsets_change_nothing(offset: float, dtype: torch.dtype) -> None:
    assert_exact(normal(300, 16, dtype=dtype) + offset, normal(500, 16, seed=1, dtype=dtype) + offset)


def test_offset_of_one_coordinate_and_two_far_clusters() -> None:
    z, e = normal(200, 8), normal(300, 8, seed=1)
    z[:, 0] += 1e4
    e[:, 0] += 1e4
    assert_exact(z, e)
    z[::2] += 1e4
    z[1::2] -= 1e4
    e[::2] += 1e4
    e[1::2] -= 1e4
    assert_exact(z, e)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-6, 1e18, 1e19, 1e30])
def test_scales(scale: float) -> None:
    assert_exact(normal(100, 7) * scale, normal(80, 7, seed=1) * scale)


def test_extreme_float64_scales_and_mixed_row_scales() -> None:
    for scale in (1e-300, 1e-160, 1e150, 1e300):
        assert_exact(normal(40, 5, dtype=torch.float64) * scale, normal(30, 5, seed=1, dtype=torch.float64) * scale)
    rows = torch.logspace(-30, 30, 100)[:, None]
    assert_exact(normal(100, 7) * rows, normal(80, 7, seed=1))
    e = normal(200, 7, seed=1)
    e[13] = 1e18  # one huge code: the bound on the filter becomes useless, the answer must not
    assert_exact(normal(100, 7), e)


@pytest.mark.parametrize("power", range(2, 51, 4))
def test_relative_gaps(power: int) -> None:
    """Two codes whose distances to z differ by about 2^-power of the distance."""
    d = 8
    z = normal(64, d, dtype=torch.float64)
    direction = torch.nn.functional.normalize(normal(d, seed=5, dtype=torch.float64), dim=0)
    for sign in (1, -1):
        e = torch.stack([z[0] + direction, z[0] - direction * (1 + sign * 2.0**-power)])
        assert_exact(z, e)
        assert_exact(z[:1], torch.cat([e, e.flip(0), e]))


def test_one_ulp_apart() -> None:
    z = normal(500, 4)
    e = normal(40, 4, seed=1)
    assert_exact(z, torch.cat([torch.nextafter(e, e + 1), e, torch.nextafter(e, e - 1)]))


def test_duplicates_go_to_the_lowest_index() -> None:
    z, e = normal(100, 16), normal(40, 16, seed=1)
    _, indices = assert_exact(z, e.repeat(9, 1))
    assert int(indices.max()) < 40
    assert nearest_code(z, e[:1].expand(5000, 16))[1].eq(0).all()
    assert nearest_code(z, torch.zeros(5000, 16))[1].eq(0).all()
    half = normal(3000, 16, seed=2)
    half[1500:] = half[:1500].flip(0)
    assert_exact(z, half)
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 4)  # many exact ties between different codes
    assert_exact(torch.rand(200, 4, generator=torch.Generator().manual_seed(0)).mul(6).round().div(2), lattice)


def test_near_collapsed_codebook() -> None:
    e = normal(1, 8) + normal(2000, 8, seed=1, dtype=torch.float64) * 1e-12
    assert_exact(normal(50, 8, seed=2), e)


def test_a_collapsed_block_of_rows_does_not_show_in_the_next() -> None:
    """The first rows find out that half the codebook is one code; the next need all codes scored again."""
    angle = normal(1024) * 7
    e = torch.stack([8 * angle.cos() + 1, 8 * angle.sin()], 1)
    e[:512] = torch.tensor([-1.0, 0.0])
    e[600], e[664] = torch.tensor([1.0, 1.7]), torch.tensor([1.0, 1.7 + 1e-6])
    z = torch.empty(768, 2)
    z[:384] = e[900] + 0.01
    z[:12] = torch.tensor([-1.0, 0.01])
    z[384:] = torch.tensor([1.0, 0.0])
    _, indices = assert_exact(z, e)
    assert torch.equal(nearest_code(z[384:], e)[1], indices[384:])


def test_duplicates_with_different_bias_are_different_codes() -> None:
    bias = torch.linspace(1, -1, 600)
    dist2, indices = assert_exact(normal(30, 4), torch.zeros(600, 4), bias)
    assert indices.eq(599).all()
    assert bool((dist2 < normal(30, 4).square().sum(1)).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_rows_and_codes(value: float) -> None:
    z, e = normal(60, 5), normal(200, 5, seed=1)
    z[3, 2] = z[59, 0] = value
    e[0, 0] = e[77, 4] = value
    dist2, indices = assert_exact(z, e)
    assert int(indices[3]) == 0
    assert bool(dist2[3].isnan())
    assert not indices[:3].eq(0).any()
    dist2, indices = nearest_code(z, torch.full((9, 5), value))
    assert indices.eq(0).all()
    assert dist2.isnan().all()


@pytest.mark.parametrize("N", [1, 2, 3, 6, 7])
def test_few_rows(N: int) -> None:
    """So few that the CPU computes every distance, and yet has to know which codes and rows do not count."""
    z, e, bias = normal(N, 9), normal(150, 9, seed=1), normal(150, seed=2)
    assert_exact(z, e)
    assert_exact(z, e[torch.arange(300) % 150], bias.repeat(2))
    assert_exact(z, e.mul(1e19), bias)
    assert_exact(z.double() * 1e200, e.double() * -1e200)  # every distance overflows
    assert_exact(z[None].expand(2, N, 9), e.bfloat16())
    for value in (float("nan"), float("inf"), -float("inf")):
        spoilt = e.clone()
        spoilt[:140, 3] = value
        assert_exact(z, spoilt, bias)
        assert_exact(z, torch.full((5, 9), value))
        assert_exact(z, e, torch.where(bias > 0, value, bias))
        row = z.clone()
        row[-1, 8] = value
        assert_exact(row, e)


def test_excluded_codes_by_bias() -> None:
    z, e = normal(60, 5), normal(100, 5, seed=1)
    bias = torch.zeros(100)
    bias[::2], bias[1] = float("inf"), float("nan")
    _, indices = assert_exact(z, e, bias)
    assert bool((indices % 2 == 1).all())
    assert not indices.eq(1).any()
    dist2, indices = nearest_code(z, e, torch.full((100,), float("inf")))
    assert dist2.isnan().all()
    assert indices.eq(0).all()


def test_huge_bias_and_minus_infinity() -> None:
    z, e, bias = normal(60, 5), normal(100, 5, seed=1), normal(100, seed=2)
    assert_exact(z, e, bias * 1e8)
    assert_exact(z, e, bias * 1e35)
    bias[42] = -float("inf")
    assert nearest_code(z, e, bias)[1].eq(42).all()


def test_an_overflow_less_infinity_counts_as_infinity() -> None:
    z, e = torch.tensor([[1e200]], dtype=torch.float64), torch.tensor([[0.0], [1e200]], dtype=torch.float64)
    bias = torch.tensor([-float("inf"), 0.0])
    assert assert_exact(z, e, bias)[1].item() == 1
    assert assert_exact(z, e.flip(0), bias.flip(0))[1].item() == 0
    dist2, indices = assert_exact(z, e[:1], bias[:1])
    assert (dist2.item(), indices.item()) == (float("inf"), 0)


def test_codes_so_small_that_their_squares_vanish_beside_a_bias() -> None:
    """Half precision takes these codes for zero, and float32 the squares of what it lost."""
    e = torch.full((32, 1), -(2.0**-76))
    e[20] = 2.0**-76
    e[1::4], e[3::4] = 2.0**54, -(2.0**54)  # outliers that keep the scale near one
    bias = torch.full((32,), 2.0**-105)
    bias[0], bias[20] = 0, 2.0**-111
    assert_exact(torch.full((3, 1), 2.0**-35), e, bias)

    e = torch.full((64, 1), -(2.0**-476), dtype=torch.float64)
    e[20] = 2.0**-476
    bias = torch.full((64,), 2.0**-905, dtype=torch.float64)
    bias[0], bias[20] = 0, 2.0**-911
    assert_exact(torch.full((3, 1), 2.0**-435, dtype=torch.float64), e, bias)


@pytest.mark.parametrize("outliers", [1, 5, 200])
def test_outliers_among_codes_and_biases(outliers: int) -> None:
    """A few codes far away must not cost the bound for the others; the answers are the same either way."""
    z, e, bias = normal(300, 6), normal(1500, 6, seed=1), normal(1500, seed=2)
    far = torch.randperm(1500, generator=torch.Generator().manual_seed(0), device="cpu")[:outliers]
    for factor in (1e3, 1e12, 1e30):
        codes = e.clone()
        codes[far] *= factor
        assert_exact(z, codes)
        assert_exact(codes[:500], codes)  # rows that want the outliers
    biases = bias.clone()
    biases[far] = -1e7
    _, indices = assert_exact(z, e, biases)
    assert torch.isin(indices, far.to(indices.device)).all()
    assert_exact(z, e, -biases)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-40, 1e-9, 1e-3])
def test_a_few_live_codes_beside_a_heap_of_dead_ones(spread: float, dtype: torch.dtype) -> None:
    """What a collapse leaves. Rows near the few need not look at the heap, rows about halfway must."""
    K, d, live = 2000, 5, 3
    e = normal(K, d, dtype=torch.float64) * spread
    at = torch.tensor([1, 700, K - 1])
    e[at] = 5 + normal(live, d, seed=1, dtype=torch.float64)
    e[: K // 2] += 0.5  # a heap that is not at the origin
    heap, e = e[2].clone(), e.to(dtype)
    steps = [0.0, *(sign * 10.0**-power for power in range(3, 18) for sign in (-1, 1))]
    halfway = [(heap + code) / 2 + step * (code - heap) for code in e[at].double() for step in steps]
    near = 5 + normal(100, d, seed=2, dtype=torch.float64)
    _, indices = assert_exact(torch.cat([near, torch.stack(halfway)]).to(dtype), e)
    assert 100 < torch.isin(indices, at).sum() < len(indices)


def test_saturation_of_the_float32_result() -> None:
    dist2, _ = nearest_code(torch.zeros(1, 2), torch.full((1, 2), 1e30))
    assert bool(dist2.isinf())
    dist2, _ = nearest_code(torch.zeros(1, 2), torch.full((1, 2), 1e-30))
    assert float(dist2) == 0.0


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x.repeat(1, 3)[:, x.shape[1] : 2 * x.shape[1]],
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: x.repeat_interleave(3, 1)[:, ::3],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    ],
)
def test_any_strides(view) -> None:
    z, e = normal(70, 12), normal(130, 12, seed=1)
    expected = reference.nearest_code(z, e)
    for a, b in ((view(z), e), (z, view(e)), (view(z), view(e))):
        dist2, indices = nearest_code(a, b)
        assert torch.equal(indices, expected[1])
        assert torch.equal(dist2, expected[0])


def test_expanded_and_channels_first_views() -> None:
    e = normal(40, 6)
    assert_exact(normal(1, 6).expand(33, 6), e)
    assert_exact(normal(33, 1).expand(33, 6), e)
    images = normal(2, 6, 5, 7)
    rows = images.permute(0, 2, 3, 1).reshape(2, 35, 6)
    view = images.flatten(2).transpose(1, 2)
    assert torch.equal(nearest_code(view, e)[1], nearest_code(rows, e)[1])


def test_offsets_beyond_32_bits() -> None:
    """Rows so far apart that their offsets need 64 bits; of the memory between them nothing is touched."""
    stride = 1 << 27
    z, e = torch.empty_strided((40, 3), (stride, 1)), torch.empty_strided((33, 3), (1, stride))
    z.copy_(normal(40, 3))
    e.copy_(normal(33, 3, seed=1))
    assert z.stride(0) * 39 > 2**32
    for got, want in zip(nearest_code(z, e), reference.nearest_code(z, e), strict=True):
        assert torch.equal(got, want)


def test_empty_input() -> None:
    z = torch.zeros(0, 4, requires_grad=True)
    dist2, indices = nearest_code(z, normal(5, 4))
    assert dist2.shape == indices.shape == (0,)
    assert indices.dtype == torch.int64
    dist2.sum().backward()
    assert z.grad is not None
    assert z.grad.shape == (0, 4)
    assert nearest_code(torch.zeros(3, 0, 4), normal(5, 4))[0].shape == (3, 0)
    assert nearest_code(torch.zeros(0, 7, 4), normal(5, 4))[0].shape == (0, 7)


# ---- what is hard for a filter of 16-bit integers ----


@pytest.mark.parametrize("d", [1, 2, 3, 7, 64, 1000, 4096])
def test_dot_products_at_the_edge_of_int32(d: int) -> None:
    """Opposite codes leave the centre at zero, so that all 16-bit integers of a row and a code are at their largest."""
    signs = normal(d).sign()
    for pattern in (torch.ones(d), signs):
        e = torch.stack([pattern, -pattern]).repeat(40, 1) * torch.linspace(1, 0.999, 80)[:, None]
        rows = torch.stack([pattern, -pattern, signs, -signs, pattern * 1e6, pattern * 1e-6, torch.zeros(d)])
        assert_exact(rows, e)
        assert_exact(torch.nextafter(rows, rows + 1), e[:7])


@pytest.mark.parametrize("decades", [1, 3, 8])
@pytest.mark.parametrize(("K", "d"), [(1100, 1), (700, 2), (900, 3), (1000, 17)])
def test_codes_and_rows_of_very_different_norms(decades: int, K: int, d: int) -> None:
    shuffled = torch.randperm(K, generator=torch.Generator().manual_seed(4), device="cpu")
    e = normal(K, d) * torch.logspace(-decades, decades, K)[shuffled][:, None]
    z = normal(200, d, seed=1)
    assert_exact(z, e)
    assert_exact(z * torch.logspace(-decades, decades, 200)[:, None], e)
    for factor in (0.0, 1e-30, 1e-6, 1e6):
        assert_exact(z * factor, e)
        assert_exact(z, e * factor)


@pytest.mark.cpu_only
@pytest.mark.parametrize("d", [33_001, 66_000])
def test_more_dimensions_than_a_16_bit_integer_counts(d: int) -> None:
    z, e = normal(7, d), normal(70, d, seed=1)
    z[0], e[5], e[6] = 2.0, 1.0, -1.0
    assert_exact(z, e)


@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("rivals", [1, 3, 500])
def test_rivals_that_the_minima_do_not_name(gap: float, rivals: int) -> None:
    """Code k + 64 shares its lane with code k: the rows near both have to be looked at again, whether few or all."""
    e, z = normal(1000, 12), normal(1000, 12, seed=1)
    e[500 : 500 + rivals] = e[500 - 64 : 500 - 64 + rivals] * (1 + gap)
    z[:rivals] = e[500 : 500 + rivals]
    z[500:] = e[:500] * (1 + gap / 3)
    assert_exact(z, e)


def test_tight_clusters_far_apart() -> None:
    centres = normal(5, 9) * 1e3
    of_code, of_row = (
        torch.randint(0, 5, (n,), generator=torch.Generator().manual_seed(n), device="cpu") for n in (700, 300)
    )
    for spread in (1.0, 1e-2, 1e-5):
        e = centres[of_code] + spread * normal(700, 9, seed=1)
        assert_exact(centres[of_row] + spread * normal(300, 9, seed=2), e)
        assert_exact(e[:300], e)


@pytest.mark.cpu_only
@pytest.mark.slow
def test_more_than_two_to_the_32_pairs() -> None:
    z, e = normal(65536, 2), normal(100_000, 2, seed=1)
    dist2, indices = nearest_code(z, e)
    some = torch.arange(0, 65536, 997)
    expected = reference.nearest_code(z[some], e)
    assert torch.equal(indices[some], expected[1])
    assert torch.equal(dist2[some], expected[0])


# ---- properties ----


@pytest.mark.cpu_only
@pytest.mark.parametrize("wanted", ["portable", "avx2", "avx512", "avx512vnni"])
def test_every_cpu_kernel_gives_the_same_bits(wanted: str, tmp_path) -> None:
    """A fresh process per kernel, as the choice is made once; a kernel the processor lacks falls to the next."""
    program = """
import sys, torch
from vqdm_cuda import build_info, nearest_code
g = torch.Generator().manual_seed(3)
answers = []
for N, K, d, offset in [(301, 1000, 16, 0), (97, 257, 5, 100), (64, 130, 33, 0), (50, 3000, 1, 0), (13, 70, 33001, 0)]:
    z, e, bias = (torch.randn(*s, generator=g) + offset for s in ((N, d), (K, d), (K,)))
    spread = torch.logspace(-6, 6, K)[:, None]
    for codes in (e, e * spread, (e * 1e3).round() / 1e3, e.sign() * 3):
        codes[K // 2:] = codes[: K - K // 2].clone()
        near = codes[:50] * (1 + 1e-6)
        answers += [*nearest_code(z, codes), *nearest_code(z, codes, bias), *nearest_code(near, codes)]
import numpy
numpy.savez(sys.argv[1], *[a.numpy() for a in answers])
print(build_info()["cpu_kernel"])
"""
    import numpy as np

    from vqdm_cuda import build_info

    def run(name: str) -> tuple[str, list]:
        out = tmp_path / f"{name}.npz"
        ran = subprocess.run(
            [sys.executable, "-c", program, str(out)], env=_environment(VQDM_CPU_KERNEL=name),
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        with np.load(out) as data:
            return ran.stdout.strip(), [data[key] for key in data.files]

    used, answers = run(wanted)
    if wanted in ("portable", *build_info()["cpu_features"]):  # type: ignore[misc]
        assert used == wanted
    _, expected = run("portable")
    assert all(np.array_equal(a, b) for a, b in zip(answers, expected, strict=True))


def _environment(**extra: str) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **extra}


def test_threads_batch_mates_and_order_do_not_matter() -> None:
    z, e = normal(1500, 16), normal(700, 16, seed=1)
    dist2, indices = nearest_code(z, e)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            again = nearest_code(z, e)
            assert torch.equal(again[0], dist2)
            assert torch.equal(again[1], indices)
    finally:
        torch.set_num_threads(threads)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_code(z[order], e)[1], indices[order])
    assert torch.equal(torch.cat([nearest_code(part, e)[0] for part in z.split(77)]), dist2)


@pytest.mark.cpu_only
def test_concurrent_callers() -> None:
    z, e = normal(400, 8), normal(300, 8, seed=1).repeat(5, 1)  # duplicates: the lazily built state too
    expected = nearest_code(z, e)[1]
    wrong: list[int] = []

    def call() -> None:
        for _ in range(10):
            if not torch.equal(nearest_code(z, e)[1], expected):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.cpu_only
def test_flush_denormal_mode_does_not_change_the_answer() -> None:
    z, e = normal(50, 4) * 1e-40, normal(60, 4, seed=1) * 1e-40
    expected = nearest_code(z, e)[1]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        assert torch.equal(nearest_code(z, e)[1], expected)
    finally:
        torch.set_flush_denormal(False)


def test_inputs_are_not_modified() -> None:
    z, e, bias = normal(20, 4), normal(30, 4, seed=1), normal(30, seed=2)
    copies = [t.clone() for t in (z, e, bias)]
    nearest_code(z, e, bias)
    assert all(torch.equal(a, b) for a, b in zip((z, e, bias), copies, strict=True))


# ---- gradients ----


def test_gradcheck() -> None:
    z = normal(2, 7, 3, dtype=torch.float64).requires_grad_()
    e = normal(5, 3, seed=1, dtype=torch.float64).requires_grad_()
    bias = normal(2, 5, seed=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: nearest_code(*a)[0], (z, e, bias))
    assert torch.autograd.gradcheck(lambda *a: nearest_code(*a)[0], (z, e))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_against_autograd_through_the_definition(dtype: torch.dtype) -> None:
    z = normal(3, 40, 6, dtype=dtype).requires_grad_()
    e = normal(20, 6, seed=1, dtype=dtype).requires_grad_()
    weight = normal(3, 40, seed=3)
    dist2, indices = nearest_code(z, e)
    assert not indices.requires_grad
    grads = torch.autograd.grad((dist2 * weight).sum(), (z, e))
    z64, e64 = (t.detach().double().requires_grad_() for t in (z, e))
    expected = torch.autograd.grad(
        ((z64 - e64[indices]).square().sum(-1) * weight.double()).sum(), (z64, e64)
    )  # fmt: skip
    for grad, want in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_gradient_of_unused_codes_is_zero() -> None:
    e = torch.cat([normal(4, 3), normal(4, 3) + 1e3]).requires_grad_()
    nearest_code(normal(50, 3, seed=1), e)[0].sum().backward()
    assert e.grad is not None
    assert e.grad[4:].eq(0).all()
    assert e.grad[:4].ne(0).any()


# ---- registration ----


@pytest.mark.parametrize(("N", "K", "d"), [(0, 3, 4), (1, 1, 1), (7, 5, 3), (129, 33, 17)])
@pytest.mark.parametrize("biased", [False, True])
def test_opcheck(N: int, K: int, d: int, biased: bool) -> None:
    z, e = normal(N, d).requires_grad_(), normal(K, d, seed=1).requires_grad_()
    bias = normal(K, seed=2).requires_grad_() if biased else None
    torch.library.opcheck(torch.ops.vqdm.nearest_code, (z, e, bias))


def test_compiles_without_a_graph_break() -> None:
    def step(z: Tensor, e: Tensor) -> Tensor:
        dist2, indices = nearest_code(z, e)
        return dist2.mean() + (z - e[indices]).abs().mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for N in (8, 20, 33):
        z, e = normal(N, 4).requires_grad_(), normal(9, 4, seed=1).requires_grad_()
        want = torch.autograd.grad(step(z, e), (z, e))
        got = torch.autograd.grad(compiled(z, e), (z, e))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


def test_a_cuda_graph_replays_with_changed_data(kernel: str) -> None:
    if not kernel.startswith("cuda"):
        pytest.skip("needs a GPU")
    z, e, bias = normal(3000, 24), normal(2000, 24, seed=1), normal(2000, seed=2)
    cases.assert_graph_replays(lambda: nearest_code(z, e, bias), z, e, bias)


def test_no_call_waits_for_the_gpu(kernel: str) -> None:
    if not kernel.startswith("cuda"):
        pytest.skip("needs a GPU")
    z, e = normal(300, 24).requires_grad_(), normal(200, 24, seed=1).requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nearest_code(z, e)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_under_autocast() -> None:
    z, e = normal(30, 4), normal(9, 4, seed=1)
    with torch.autocast(z.device.type, dtype=torch.bfloat16):
        dist2, indices = nearest_code(z, e)
    assert dist2.dtype == torch.float32
    assert torch.equal(indices, nearest_code(z, e)[1])


def test_vmap_makes_a_head() -> None:
    z, e, bias = normal(4, 2, 20, 5), normal(4, 9, 5, seed=1), normal(4, 2, 9, seed=2)
    every = torch.func.vmap(nearest_code)(z, e, bias)
    only_bias = torch.func.vmap(lambda bias: nearest_code(z[0], e[0], bias))(bias)
    only_codes = torch.func.vmap(lambda e: nearest_code(z[0], e), in_dims=1)(e.transpose(0, 1))
    for b in range(4):
        assert all(map(torch.equal, (t[b] for t in every), nearest_code(z[b], e[b], bias[b])))
        assert all(map(torch.equal, (t[b] for t in only_bias), nearest_code(z[0], e[0], bias[b])))
        assert all(map(torch.equal, (t[b] for t in only_codes), nearest_code(z[0], e[b])))


# ---- bad input ----

BAD = [
    (ValueError, "equal d, got [3, 4] and [3, 5]", lambda: nearest_code(torch.ones(3, 4), torch.ones(3, 5))),
    (ValueError, "got [4] and [3, 4]", lambda: nearest_code(torch.ones(4), torch.ones(3, 4))),
    (ValueError, "K >= 1 and d >= 1, got [0, 4]", lambda: nearest_code(torch.ones(3, 4), torch.ones(0, 4))),
    (ValueError, "K >= 1 and d >= 1, got [3, 0]", lambda: nearest_code(torch.ones(3, 0), torch.ones(3, 0))),
    (ValueError, "K = 3 codes", lambda: nearest_code(torch.ones(3, 4), torch.ones(3, 4), torch.ones(4))),
    (ValueError, "K = 3 codes", lambda: nearest_code(torch.ones(3, 4), torch.ones(3, 4), torch.tensor(1.0))),
    (ValueError, "broadcast", lambda: nearest_code(torch.ones(2, 3, 4), torch.ones(5, 3, 4))),
    (ValueError, "broadcast", lambda: nearest_code(torch.ones(2, 3, 4), torch.ones(3, 4), torch.ones(3, 3))),
    (ValueError, "device of z", lambda: nearest_code(torch.ones(3, 4), torch.ones(3, 4, device="meta"))),
    (TypeError, "e of dtype", lambda: nearest_code(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64))),
    (TypeError, "z of dtype", lambda: nearest_code(torch.ones(3, 4, dtype=torch.complex64), torch.ones(3, 4))),
    (TypeError, "e to be a tensor", lambda: nearest_code(torch.ones(3, 4), [[1.0] * 4])),  # type: ignore[arg-type]
    (TypeError, "bias of dtype", lambda: nearest_code(torch.ones(3, 4), torch.ones(3, 4), torch.ones(3).bool())),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error) as eager:
        call()
    text = str(eager.value)
    assert message in text
    assert text.startswith("nearest_code: expected ")
    assert "\n" not in text
    nearest_code(torch.ones(3, 4), torch.ones(3, 4))  # and the next good call works


@pytest.mark.cpu_only
def test_bad_input_under_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        with pytest.raises(ValueError, match=r"nearest_code: expected z .* got \[3, 4\] and \[3, 5\]"):
            nearest_code(torch.ones(3, 4), torch.ones(3, 5))
        dist2, indices = nearest_code(torch.ones(2, 3, 4), torch.ones(5, 4))
        assert dist2.shape == indices.shape == (2, 3)


def test_the_operator_checks_what_memory_safety_needs() -> None:
    with pytest.raises((RuntimeError, ValueError), match="nearest_code"):
        torch.ops.vqdm.nearest_code(torch.ones(3, 4), torch.ones(3, 5), None)
