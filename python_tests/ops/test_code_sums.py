"""code_sums: values, gradients, registration, properties, nasty and bad inputs."""

import numpy as np
import pytest
import torch

import cases
from vqdm_cuda import reference
from vqdm_cuda.ops.code_sums import _add_rows, _add_rows_sorted, code_sums


def drawn(N: int, K: int, d: int, dtype: torch.dtype = torch.float64, heads: tuple[int, ...] = ()):
    return torch.randn(*heads, N, d, dtype=torch.float64).to(dtype), torch.randint(0, K, (*heads, N))


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("N", "K", "d"), cases.SIZES)
def test_equals_reference(N, K, d, dtype, device):
    z, indices = drawn(N, K, d, dtype)
    sums, counts = code_sums(z.to(device), indices.to(device), K)
    expected, expected_counts = reference.code_sums(z, indices, K)
    assert sums.dtype == cases.out_dtype(dtype)
    assert counts.dtype == torch.int64
    assert torch.equal(counts.cpu(), expected_counts)
    cases.assert_close(sums.cpu(), expected, cases.tolerance(dtype, N), scale=float(N))


def test_bits_are_those_of_a_loop_over_rows():
    z, indices = drawn(5000, 7, 3)
    z *= torch.logspace(-8, 8, 5000, dtype=torch.float64)[:, None]  # an order of addition that shows
    looped = np.zeros((7, 3))
    np.add.at(looped, indices.numpy(), z.numpy())
    assert np.array_equal(code_sums(z, indices, 7)[0].numpy(), looped)


def test_heads_are_separate():
    z, indices = drawn(50, 9, 4, heads=(2, 3))
    sums, counts = code_sums(z, indices, 9)
    assert sums.shape == (2, 3, 9, 4)
    for i in range(2):
        for j in range(3):
            one_sums, one_counts = code_sums(z[i, j], indices[i, j], 9)
            assert torch.equal(sums[i, j], one_sums)
            assert torch.equal(counts[i, j], one_counts)


@pytest.mark.parametrize(("heads", "N"), [((), 60), ((2, 3), 60), ((2,), 0)])
def test_what_gpus_run_gives_the_same_bits(heads, N):
    z, indices = drawn(N, 9, 4, torch.float32, heads)
    assert torch.equal(_add_rows_sorted(z, indices, 9), _add_rows(z, indices, 9))
    if N:
        indices[..., 0] = -1
        with pytest.raises(IndexError):
            _add_rows_sorted(z, indices, 9)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_to_one_graph(dtype):
    z, indices = drawn(40, 6, 5, dtype)
    cases.assert_compiles(lambda z, indices: code_sums(z, indices, 6), z.requires_grad_(), indices)


def test_autocast_changes_nothing():
    z, indices = drawn(40, 6, 5, torch.float32)
    expected = code_sums(z, indices, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, code_sums(z, indices, 6), expected))


# --- properties -----------------------------------------------------------------------------------------------------


def test_same_bits_for_any_number_of_threads():
    z, indices = drawn(40_000, 13, 8, torch.float32)
    z *= torch.logspace(-4, 4, 40_000)[:, None]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(code_sums(z, indices, 13)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_counts_sum_to_number_of_rows():
    z, indices = drawn(1000, 17, 2)
    sums, counts = code_sums(z, indices, 17)
    assert counts.sum() == 1000
    cases.assert_close(sums.sum(0), z.sum(0), 1000 * torch.finfo(torch.float64).eps, scale=z.abs().sum())


@cases.NO_GPU
def test_gpu_repeats_bit_for_bit():
    z, indices = drawn(100_000, 11, 16, torch.float32)
    z, indices = z.cuda(), indices.cuda()
    first = code_sums(z, indices, 11)[0]
    assert all(torch.equal(first, code_sums(z, indices, 11)[0]) for _ in range(5))


# --- nasty ----------------------------------------------------------------------------------------------------------


def test_all_rows_in_one_code():
    z = torch.ones(10_000, 3, dtype=torch.float16)  # a float16 sum would stop at 2048
    sums, counts = code_sums(z, torch.full((10_000,), 4), 6)
    assert sums[4].tolist() == [10_000.0] * 3
    assert counts.tolist() == [0, 0, 0, 0, 10_000, 0]
    assert sums[[0, 1, 2, 3, 5]].eq(0).all()


def test_nan_stays_in_its_code():
    z, indices = drawn(10, 3, 2)
    indices[:] = torch.arange(10) % 3
    z[4] = torch.nan
    sums, _ = code_sums(z, indices, 3)
    assert sums.isnan().any(-1).tolist() == [False, True, False]


def test_strided_views():
    z, indices = drawn(30, 4, 6)
    for view in (z.T.contiguous().T, z[:, ::2], z[::3].expand(10, 6), torch.zeros(1, 6).double().expand(30, 6)):
        rows = indices[: len(view)]
        assert torch.equal(code_sums(view, rows, 4)[0], code_sums(view.contiguous(), rows, 4)[0])
    assert torch.equal(code_sums(z, indices[0].expand(30), 4)[1], torch.bincount(indices[:1], minlength=4) * 30)


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
    with pytest.raises(ValueError, match=r"code_sums: expected indices in \[0, 2\), got values from"):
        code_sums(torch.zeros(3, 1), torch.tensor([0, index, 1]), 2)
