"""code_sums: values, gradients, registration, properties, nasty and bad inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cases
from vqdm_cuda import code_sums, reference


def drawn(N: int, K: int, d: int, dtype: torch.dtype = torch.float64, heads: tuple[int, ...] = ()):
    return torch.randn(*heads, N, d, dtype=torch.float64).to(dtype), torch.randint(0, K, (*heads, N))


def scaled(N: int, d: int, low: float, high: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of magnitudes from 10^low to 10^high in random order, so that the order of addition shows."""
    magnitudes = 10 ** (low + (high - low) * torch.rand(N, 1, dtype=torch.float64))
    return (torch.randn(N, d, dtype=torch.float64) * magnitudes).to(dtype)


def numpy_loop(z: Tensor, indices: Tensor, K: int) -> Tensor:
    """The definition, one float64 addition after the other; [N, d] -> [K, d]."""
    rows, sums = z.double().numpy(), np.zeros((K, z.shape[1]))
    for k in indices.unique().tolist():
        of_code = rows[indices.numpy() == k]
        for first in range(0, len(of_code), 256):
            chunk = np.zeros(z.shape[1])
            for row in of_code[first : first + 256]:
                chunk += row
            sums[k] += chunk  # from 0, which is exact: the first chunk's sum is never -0
    return torch.from_numpy(sums).to(cases.out_dtype(z.dtype))


def assert_same(sums: Tensor, expected: Tensor) -> None:
    """The same bits; of NaN, the same places."""
    assert sums.dtype == expected.dtype
    torch.testing.assert_close(sums.cpu(), expected.cpu(), rtol=0, atol=0, equal_nan=True)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("N", "K", "d"), cases.SIZES)
def test_equals_reference(N, K, d, dtype, device):
    z, indices = drawn(N, K, d, dtype)
    sums, counts = code_sums(z.to(device), indices.to(device), K)
    expected, expected_counts = reference.code_sums(z, indices, K)
    assert_same(sums, expected)
    assert counts.dtype == torch.int64
    assert torch.equal(counts.cpu(), expected_counts)


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("d", [1, 7, 8, 16, 45])
def test_bits_are_those_of_a_loop_over_rows(d, dtype, device):
    """Codes of 0 rows, 1, and as many as fill a chunk or the share of a thread, and one more or less."""
    lengths = torch.tensor([0, 1, 255, 256, 257, 5000, 0, 513, 2])
    indices = torch.arange(9).repeat_interleave(lengths)
    indices = indices[torch.randperm(len(indices))]
    z = scaled(len(indices), d, -4, 4, dtype)
    sums, counts = code_sums(z.to(device), indices.to(device), 9)
    assert_same(sums, numpy_loop(z, indices, 9))
    assert torch.equal(counts.cpu(), lengths)
    assert_same(reference.code_sums(z, indices, 9)[0], numpy_loop(z, indices, 9))


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("K", [1, 2, 1000, 100_000])
def test_few_and_many_codes(K, device):
    z, indices = scaled(20_000, 3, -4, 4), torch.randint(0, K, (20_000,))
    sums, counts = code_sums(z.to(device), indices.to(device), K)
    assert_same(sums, numpy_loop(z, indices, K))
    assert torch.equal(counts.cpu(), torch.bincount(indices, minlength=K))


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
def test_heads_are_separate(device):
    z, indices = (t.to(device) for t in drawn(50, 9, 4, heads=(2, 3)))
    for rows in (z, z.transpose(0, 1).contiguous().transpose(0, 1)):
        sums, counts = code_sums(rows, indices, 9)
        assert sums.shape == (2, 3, 9, 4)
        for i in range(2):
            for j in range(3):
                one_sums, one_counts = code_sums(z[i, j], indices[i, j], 9)
                assert torch.equal(sums[i, j], one_sums)
                assert torch.equal(counts[i, j], one_counts)


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 1200), K=st.integers(1, 40), d=st.integers(1, 70), heads=st.sampled_from([(), (1,), (3,), (2, 2)]),
    dtype=st.sampled_from(cases.DTYPES), collapsed=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_input(N, K, d, heads, dtype, collapsed, seed):
    torch.manual_seed(seed)
    z, indices = drawn(N, K, d, dtype, heads)
    if collapsed:
        indices.fill_(seed % K)
    for actual, expected in zip(code_sums(z, indices, K), reference.code_sums(z, indices, K), strict=True):
        assert_same(actual, expected)


# --- gradients ------------------------------------------------------------------------------------------------------


def test_gradient_gathers():
    z, indices = drawn(20, 5, 3)
    z.requires_grad_()
    upstream = torch.randn(5, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((code_sums(z, indices, 5)[0] * upstream).sum(), z)
    assert torch.equal(gradient, upstream[indices])


def test_gradcheck_twice():
    z, indices = drawn(6, 3, 2, heads=(2,))
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: code_sums(z, indices, 3)[0], (z,))
    assert torch.autograd.gradgradcheck(lambda z: code_sums(z, indices, 3)[0], (z,))


# --- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize(("N", "K", "d"), cases.SIZES)
@pytest.mark.parametrize("heads", [(), (2, 3)])
def test_opcheck(N, K, d, heads, device):
    z, indices = drawn(N, K, d, torch.float32, heads)
    torch.library.opcheck(torch.ops.vqdm.code_sums, (z.to(device).requires_grad_(), indices.to(device), K))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_to_one_graph(dtype):
    z, indices = drawn(40, 6, 5, dtype)
    cases.assert_compiles(lambda z, indices: code_sums(z, indices, 6), z.requires_grad_(), indices)


def test_autocast_changes_nothing():
    z, indices = drawn(40, 6, 5, torch.float32)
    expected = code_sums(z, indices, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, code_sums(z, indices, 6), expected))


def test_vmap_makes_a_head():
    z, indices = drawn(30, 6, 4, heads=(5, 2))
    z.requires_grad_()
    expected = code_sums(z, indices, 6)
    for dim in (0, 1):
        mapped = torch.func.vmap(lambda z, indices: code_sums(z, indices, 6), in_dims=(dim, dim))(z, indices)
        for actual, wanted in zip(mapped, expected, strict=True):
            assert torch.equal(actual.movedim(0, dim), wanted)
    shared = torch.func.vmap(lambda z: code_sums(z, indices[0, 0], 6)[0])(z[0])
    assert torch.equal(shared[1], code_sums(z[0, 1], indices[0, 0], 6)[0])
    shared.sum().backward()
    assert z.grad is not None
    assert z.grad[0].eq(1).all()


@cases.NO_GPU
def test_a_cuda_graph_replays_with_changed_data():
    z, indices = (t.cuda() for t in drawn(5000, 300, 24, torch.float32))
    cases.assert_graph_replays(lambda: code_sums(z, indices, 300), z, indices)


# --- properties -----------------------------------------------------------------------------------------------------


def test_same_bits_for_any_number_of_threads():
    z, skewed = scaled(60_000, 19, -4, 4), torch.randint(0, 13, (60_000,)).clamp_min(5)
    threads = torch.get_num_threads()
    try:
        for indices, K in ((skewed, 13), (torch.randint(0, 9000, (60_000,)), 9000), (torch.zeros_like(skewed), 1)):
            results = []
            for count in (1, 2, 7):
                torch.set_num_threads(count)
                results.append(code_sums(z, indices, K)[0])
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
def test_the_sum_of_a_code_depends_on_its_own_rows_alone(device):
    z, indices = scaled(3000, 5, -4, 4).to(device), torch.randint(0, 4, (3000,)).to(device)
    together, _ = code_sums(z, indices, 4)
    for k in range(4):
        rows = z[indices == k]
        alone, _ = code_sums(rows, torch.full((len(rows),), 7, device=device), 9)
        assert torch.equal(alone[7], together[k])


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
def test_counts_sum_to_number_of_rows(device):
    z, indices = (t.to(device) for t in drawn(1000, 17, 2))
    sums, counts = code_sums(z, indices, 17)
    assert counts.sum() == 1000
    cases.assert_close(sums.sum(0), z.sum(0), 1000 * torch.finfo(torch.float64).eps, scale=float(z.abs().sum()))


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
def test_repeats_bit_for_bit(device):
    z, indices = (t.to(device) for t in drawn(20_000, 11, 16, torch.float32))
    first = code_sums(z, indices, 11)[0]
    assert all(torch.equal(first, code_sums(z, indices, 11)[0]) for _ in range(5))


def test_flush_denormal_mode_does_not_change_the_answer():
    z, indices = torch.full((300, 9), 1e-44), torch.zeros(300, dtype=torch.int64)
    z[::3] = -3e-45
    inputs = (z, z.T.contiguous().T, z.double() * 1e-270, torch.full((300, 9), 9e-41).bfloat16())
    expected = [code_sums(x, indices, 1)[0] for x in inputs]
    assert all(sums.ne(0).all() for sums in expected)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        flushing = [code_sums(x, indices, 1)[0] for x in inputs]
    finally:
        torch.set_flush_denormal(False)
    assert all(map(torch.equal, flushing, expected))


# --- nasty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
def test_offsets_beyond_32_bits(device):
    z, indices = drawn(40, 5, 3, torch.float32)
    far = torch.empty_strided((40, 3), (1 << 27, 1), device=device).copy_(z)  # what lies between is never touched
    assert torch.equal(code_sums(far, indices.to(device), 5)[0].cpu(), code_sums(z, indices, 5)[0])


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
def test_all_rows_in_one_code(device):
    z = torch.ones(10_000, 3, dtype=torch.float16, device=device)  # a float16 sum would stop at 2048
    sums, counts = code_sums(z, torch.full((10_000,), 4, device=device), 6)
    assert sums[4].tolist() == [10_000.0] * 3
    assert counts.tolist() == [0, 0, 0, 0, 10_000, 0]
    assert sums[[0, 1, 2, 3, 5]].eq(0).all()


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_and_tiny_magnitudes(dtype, device):
    z, indices = scaled(4000, 6, -30, 18, dtype), torch.randint(0, 3, (4000,))
    assert_same(code_sums(z.to(device), indices.to(device), 3)[0], numpy_loop(z, indices, 3))
    overflowing = torch.full((600, 2), 3e38).to(dtype)
    sums, _ = code_sums(overflowing.to(device), torch.zeros(600, dtype=torch.int64, device=device), 1)
    assert_same(sums, numpy_loop(overflowing, torch.zeros(600, dtype=torch.int64), 1))


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_rows_stay_in_their_code(value, device):
    z, indices = drawn(10, 3, 2)
    indices[:] = torch.arange(10) % 3
    z[4] = value
    sums, _ = code_sums(z.to(device), indices.to(device), 3)
    assert sums.isfinite().any(-1).tolist() == [True, False, True]
    assert_same(sums, numpy_loop(z, indices, 3))


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_strided_views(dtype, device):
    z, indices = (t.to(device) for t in drawn(30, 4, 6, dtype))
    single = torch.ones(1, 6, dtype=dtype, device=device).expand(30, 6)
    for view in (z.T.contiguous().T, z[:, ::2], z[::3].expand(10, 6), single, z.flip(0)[1:, 1:]):
        rows = indices[: len(view)]
        assert torch.equal(code_sums(view, rows, 4)[0], code_sums(view.contiguous(), rows, 4)[0])
    twice = indices.repeat_interleave(2)
    assert torch.equal(code_sums(z, twice[::2], 4)[0], code_sums(z, indices, 4)[0])
    assert code_sums(z, indices[0].expand(30), 4)[1].tolist() == [30 * (k == int(indices[0])) for k in range(4)]


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
def test_empty(device):
    for shape, K in (((0, 4), 3), ((2, 0, 4), 3), ((0, 7, 4), 3), ((5, 0), 2)):
        z = torch.zeros(shape, device=device, requires_grad=True)
        sums, counts = code_sums(z, torch.zeros(shape[:-1], dtype=torch.int64, device=device), K)
        assert sums.shape == (*shape[:-2], K, shape[-1])
        assert sums.eq(0).all()
        assert counts.sum() == z.shape[:-1].numel()
        sums.sum().backward()
        assert z.grad is not None


def test_inputs_are_not_modified():
    z, indices = drawn(40, 6, 5)
    copies = z.clone(), indices.clone()
    code_sums(z, indices, 6)
    assert torch.equal(z, copies[0])
    assert torch.equal(indices, copies[1])


# --- bad ------------------------------------------------------------------------------------------------------------

Z = torch.zeros


def L(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


BAD = {
    "one dimension": (lambda: code_sums(Z(4), L(4), 2), ValueError, "code_sums: expected z [..., N, d] and indices"),
    "lengths": (lambda: code_sums(Z(4, 2), L(3), 2), ValueError, "code_sums: expected z [..., N, d] and indices"),
    "heads": (lambda: code_sums(Z(2, 4, 2), L(4), 2), ValueError, "code_sums: expected z [..., N, d] and indices"),
    "no codes": (lambda: code_sums(Z(4, 2), L(4), 0), ValueError, "code_sums: expected num_codes >= 1, got 0"),
    "float codes": (lambda: code_sums(Z(4, 2), L(4), 2.0), TypeError, "code_sums: expected num_codes to be an int"),  # type: ignore[arg-type]
    "int z": (lambda: code_sums(L(4, 2), L(4), 2), TypeError, "code_sums: expected z of dtype float64, float32"),
    "float indices": (lambda: code_sums(Z(4, 2), Z(4), 2), TypeError, "code_sums: expected indices of dtype int64"),
    "list z": (lambda: code_sums([[0.0]], L(1), 2), TypeError, "code_sums: expected z to be a tensor, got list"),  # type: ignore[arg-type]
    "list indices": (lambda: code_sums(Z(1, 1), [0], 2), TypeError, "code_sums: expected indices to be a tensor"),  # type: ignore[arg-type]
    "device": (
        lambda: code_sums(Z(4, 2), L(4).to("meta"), 2),
        ValueError,
        "code_sums: expected indices on the device of z, cpu, got meta",
    ),
}


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad(bad, fake):
    cases.assert_raises(bad, fake=fake)


@pytest.mark.parametrize("index", [-1, 2, 2**40])
def test_index_out_of_range(index):
    low, high = min(0, index), max(1, index)
    message = rf"^code_sums: expected indices in \[0, 2\), got values from {low} to {high}$"
    for N in (3, 50_000):  # counted by one thread, or by several
        indices = torch.zeros(2, N, dtype=torch.int64)
        indices[1, N // 2], indices[0, 0] = index, 1
        with pytest.raises(ValueError, match=message):
            code_sums(torch.zeros(2, N, 1), indices, 2)


def test_the_operator_checks_what_memory_safety_needs():
    for z, indices, K in ((Z(3, 4), L(4), 2), (Z(3, 4), L(3, 4), 2), (Z(3, 4), L(3).int(), 2), (Z(3, 4), L(3), 0)):
        with pytest.raises((RuntimeError, ValueError), match="code_sums"):
            torch.ops.vqdm.code_sums(z, indices, K)
