"""moments: values, gradients, registration, properties, nasty and bad inputs. Processes: test_distributed.py."""

import os
import subprocess
import sys

import pytest
import torch

import cases
from vqdm_cuda import reference
from vqdm_cuda.ops.moments import moments

# Sums of 256 products in the working type: rounding errors of random sign grow as the root of their number, 16. Above
# that, float64.
ROWS = [1, 2, 127, 128, 129, 255, 256, 257, 512, 3000]
WIDTHS = [1, 5, 8, 16, 17, 31, 32, 33, 40, 64, 65, 100]  # around every tile of every instruction set


def relative(dtype: torch.dtype) -> float:
    return 16 * torch.finfo(cases.out_dtype(dtype)).eps


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("N", ROWS)
def test_equals_reference(N, unbiased, dtype, device):
    x = cases.features(N, 5, dtype, offset=0.5)
    mean, cov = moments(x.to(device), unbiased=unbiased)
    expected_mean, expected_cov = reference.moments(x, unbiased=unbiased)
    assert mean.dtype == cov.dtype == cases.out_dtype(dtype)
    cases.assert_close(mean.cpu(), expected_mean, cases.tolerance(dtype, N), scale=x.double().abs().max())
    if N == 1 and unbiased:
        assert cov.isnan().all()
    else:
        cases.assert_close(cov.cpu(), expected_cov, relative(dtype), scale=expected_cov.abs().max())


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [*WIDTHS, 300])
def test_widths(d, dtype, device):
    x = cases.features(300, d, dtype, offset=1.0)
    mean, cov = (m.cpu() for m in moments(x.to(device)))
    expected_mean, expected_cov = reference.moments(x)
    cases.assert_close(mean, expected_mean, cases.tolerance(dtype, 300), scale=x.double().abs().max())
    cases.assert_close(cov, expected_cov, relative(dtype))


@pytest.mark.cpu_only
@pytest.mark.parametrize("d", [3, 40])
def test_many_groups_of_rows(d):
    """More rows than the groups that threads take; and the same bits however many threads there are."""
    x = cases.features(150_000, d, torch.float32, offset=3.0)
    mean, cov = moments(x)
    expected_mean, expected_cov = reference.moments(x)
    cases.assert_close(mean, expected_mean, 1e-7)
    cases.assert_close(cov, expected_cov, 1e-6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = moments(x)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, one, (mean, cov)))


@pytest.mark.cpu_only
@pytest.mark.parametrize("kernel", ["portable", "avx2", "avx512"])
def test_every_instruction_set(kernel):
    """Values and gradients within rounding of the reference, in a process that is held to this set."""
    program = f"""
import sys, torch
from vqdm_cuda import moments, reference
torch.manual_seed(0)
for d in {WIDTHS}:
    for dtype, allowed in ((torch.float32, 3e-6), (torch.float64, 1e-14)):
        x = (torch.randn(301, d, dtype=dtype) + 1).requires_grad_()
        results = [(*f(x), *torch.autograd.grad(f(x)[1].square().sum() + f(x)[0].sum(), x))
                   for f in (moments, reference.moments)]
        for ours, textbook in zip(*results):
            error = (ours.double() - textbook.double()).abs().max() / textbook.abs().max()
            assert error <= allowed, (d, dtype, float(error))
print("checked")
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "VQDM_CPU_KERNEL": kernel,
    }
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "checked", ran.stderr


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, *WIDTHS])
@pytest.mark.parametrize("N", [1, 7, 39, 40, 41, 300])
def test_gradients_equal_those_of_the_reference(N, d):
    x = cases.features(N, d, offset=2.0).requires_grad_()
    weight_mean, weight_cov = torch.randn(d).double(), torch.randn(d, d).double()
    gradients: list[torch.Tensor] = []
    for function in (moments, reference.moments):
        mean, cov = function(x)
        gradients += torch.autograd.grad((mean * weight_mean).sum() + (cov * weight_cov).sum(), x)
    ours, textbook = gradients
    cases.assert_close(ours, textbook, relative(torch.float64), scale=float(x.detach().abs().max()))


def test_gradcheck():
    x = cases.features(9, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moments(x, unbiased=True), (x,))


def test_gradient_keeps_its_digits_far_from_zero():
    x = cases.features(600, 4, torch.float32, offset=1e4).requires_grad_()
    slope = torch.randn(4, 4)
    (gradient,) = torch.autograd.grad((moments(x)[1] * slope).sum(), x)
    (expected,) = torch.autograd.grad((reference.moments(x.double())[1] * slope.double()).sum(), x)
    assert gradient.dtype == torch.float32
    cases.assert_close(gradient, expected, 16 * torch.finfo(torch.float32).eps)


def test_double_backward_is_refused():
    x = cases.features(9, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(moments(x)[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="moments: expected at most one backward pass"):
        gradient.sum().backward()


# --- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.KERNEL_DEVICES, indirect=True)
@pytest.mark.parametrize(("N", "d"), [(0, 3), (1, 1), (9, 4), (130, 33)])
def test_opcheck(N, d, device):
    x = cases.features(N, d, torch.float32).to(device)
    torch.library.opcheck(torch.ops.vqdm.moments, (x.requires_grad_(), max(N, 1)))
    if device == "cpu":
        mean, cov = torch.ops.vqdm.moments(x.detach(), 1)
        torch.library.opcheck(torch.ops.vqdm.moments_backward, (x.detach(), mean, mean, cov))


@pytest.mark.parametrize(("N", "dtype"), [(0, torch.float32), (300, torch.float32), (520, torch.bfloat16)])
def test_compiles_to_one_graph(N, dtype):
    cases.assert_compiles(lambda x: moments(x), cases.features(N, 5, dtype).requires_grad_())


def test_autocast_changes_nothing():
    x = cases.features(300, 5, torch.float32).requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            mean, cov = moments(x)
            results.append([mean, cov, *torch.autograd.grad(cov.square().sum(), x)])
    assert all(map(torch.equal, *results))


# --- properties -----------------------------------------------------------------------------------------------------


def test_shift_moves_the_mean_alone():
    x = cases.features(1000, 6).mul(2**10).round().div(2**10)  # so that the shift below is exact
    mean, cov = moments(x)
    shifted_mean, shifted_cov = moments(x + 2**20)
    cases.assert_close(shifted_mean - 2**20, mean, cases.tolerance(torch.float64, 1), scale=2.0**20)
    cases.assert_close(shifted_cov, cov, relative(torch.float64))


def test_covariance_is_symmetric_and_positive():
    _, cov = moments(cases.features(40, 12, torch.float32))
    assert torch.equal(cov, cov.T)
    assert torch.linalg.eigvalsh(cov.double()).min() > 0


# --- nasty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [100, 256, 3000])
@pytest.mark.parametrize("offset", [1e2, 1e4, -1e6])
def test_offsets_cost_no_digits(N, offset):
    x = cases.features(N, 5, torch.float32, offset=offset)
    mean, cov = moments(x)
    expected_mean, expected_cov = reference.moments(x)
    assert torch.equal(mean, expected_mean)
    cases.assert_close(cov, expected_cov, relative(torch.float32))


def test_two_far_clusters():
    x = cases.features(1024, 3, torch.float32)
    x[:512] += 1e4
    x[512:] -= 1e4
    cases.assert_close(moments(x)[1], reference.moments(x)[1], relative(torch.float32))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scales(scale):
    x = cases.features(300, 3, torch.float32, scale=scale)
    cases.assert_close(moments(x)[1], reference.moments(x)[1], relative(torch.float32))


def test_constant_rows_have_no_covariance():
    _, cov = moments(torch.full((1000, 3), 0.1))
    assert torch.equal(cov, torch.zeros(3, 3))


def test_no_rows_are_undefined_and_have_an_empty_gradient():
    x = torch.zeros(0, 3, requires_grad=True)
    mean, cov = moments(x)
    assert mean.isnan().all()
    assert cov.isnan().all()
    assert torch.autograd.grad(cov.sum() + mean.sum(), x)[0].shape == (0, 3)


def test_nan_rows_show():
    x = cases.features(600, 3)
    x[300, 1] = torch.nan
    mean, cov = moments(x)
    assert mean.isnan().tolist() == [False, True, False]
    assert cov[1].isnan().all()
    assert not cov[0, 2].isnan()


def test_strided_views():
    x = cases.features(600, 8)
    image = x.T.reshape(1, 8, 30, 20)
    for view in (image.permute(0, 2, 3, 1).reshape(-1, 8), x[::2, 1:4], x[:1].expand(300, 8)):
        # Equal up to the order in which a matrix product of another layout adds.
        for got, expected in zip(moments(view), reference.moments(view), strict=True):
            cases.assert_close(got, expected, relative(torch.float64), scale=x.abs().max() ** 2)


# --- bad ------------------------------------------------------------------------------------------------------------

BAD = {
    "vector": (lambda: moments(torch.zeros(3)), ValueError, "moments: expected x [N, d] with d >= 1, got [3]"),
    "batch": (lambda: moments(torch.zeros(2, 3, 4)), ValueError, "moments: expected x [N, d] with d >= 1, got [2, 3,"),
    "no columns": (
        lambda: moments(torch.zeros(3, 0)),
        ValueError,
        "moments: expected x [N, d] with d >= 1, got [3, 0]",
    ),
    "int": (lambda: moments(torch.zeros(3, 2).long()), TypeError, "moments: expected x of dtype float64, float32"),
    "list": (lambda: moments([[1.0]]), TypeError, "moments: expected x to be a tensor, got list"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad(bad, fake):
    cases.assert_raises(bad, fake=fake)
