"""gaussian_w2 against 40-digit arithmetic on the same rounded inputs: ill-conditioned covariances, near coincidence."""

import functools

import mpmath
import pytest
import torch
from torch import Tensor

import cases
from vqdm_cuda.ops.gaussian_w2 import gaussian_w2

pytestmark = [pytest.mark.usefixtures("route"), pytest.mark.parametrize("route", cases.ROUTES, indirect=True)]

D = 5
DIGITS = 40


def positive_root(S: mpmath.matrix) -> tuple[mpmath.matrix, mpmath.matrix]:
    """Root and pseudo-inverse root of the positive semi-definite part."""
    values, V = mpmath.eigsy(S)
    roots = [mpmath.sqrt(max(v, 0)) for v in values]
    inverses = [1 / r if r > 0 else mpmath.mpf(0) for r in roots]
    return V * mpmath.diag(roots) * V.T, V * mpmath.diag(inverses) * V.T


def truth(cov1: Tensor, cov2: Tensor) -> tuple[float, Tensor]:
    """B^2 and dB^2/dS1 = I - S1^-1/2 (S1^1/2 S2 S1^1/2)^1/2 S1^-1/2, rounded to float64."""
    with mpmath.workdps(DIGITS):
        S1, S2 = (mpmath.matrix(S.double().tolist()) for S in (cov1, cov2))
        root1, inverse1 = positive_root(S1)
        root2, _ = positive_root(S2)
        S1, S2 = root1 * root1, root2 * root2  # negative eigenvalues, as rounding makes them, count as zero
        root, _ = positive_root((root1 * S2 * root1 + (root1 * S2 * root1).T) / 2)
        trace = sum(S1[i, i] + S2[i, i] - 2 * root[i, i] for i in range(len(S1)))
        T = inverse1 * root * inverse1
        gradient = torch.tensor([[float((i == j) - T[i, j]) for j in range(len(T))] for i in range(len(T))])
        return float(trace), gradient.double()


def symmetric(S: Tensor, dtype: torch.dtype) -> Tensor:
    S = S.to(dtype)
    return torch.triu(S) + torch.triu(S, 1).mT  # rounded, and still symmetric


@functools.cache
def problem(kind: str, log_condition: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float, Tensor]:
    generator = torch.Generator().manual_seed(log_condition)

    def drawn() -> Tensor:
        V = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
        return (V * 10 ** (-log_condition * torch.linspace(0, 1, D, dtype=torch.float64))) @ V.T

    S1 = symmetric(drawn(), dtype)
    if kind == "apart":
        S2 = symmetric(drawn(), dtype)
    else:  # agree to this relative difference
        E = torch.randn(D, D, generator=generator, dtype=torch.float64) / D
        root = torch.linalg.cholesky(S1.double())
        S2 = symmetric(root @ torch.matrix_exp(float(kind) * (E + E.T)) @ root.T, dtype)
    return S1, S2, *truth(S1, S2)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("log_condition", [0, 1, 2, 4, 6, 8])
def test_value_up_to_condition_1e8(log_condition, dtype, allowed):
    S1, S2, expected, _ = problem("apart", log_condition, dtype)
    zero = torch.zeros(D, dtype=dtype)
    assert gaussian_w2(zero, S1, zero, S2).item() == pytest.approx(expected, rel=allowed)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-2), (torch.float64, 1e-4)])
@pytest.mark.parametrize("log_condition", [0, 2, 4])
@pytest.mark.parametrize("kind", ["1e-3", "1e-5", "1e-7"])
def test_covariances_that_nearly_agree(kind, log_condition, dtype, allowed):
    S1, S2, expected, gradient = problem(kind, log_condition, dtype)
    S1 = S1.clone().requires_grad_()
    zero = torch.zeros(D, dtype=dtype)
    value = gaussian_w2(zero, S1, zero, S2)
    (actual,) = torch.autograd.grad(value, S1)
    assert value >= 0
    trace = (S1.trace() + S2.trace()).item()
    near = dtype == torch.float64 and expected >= 1e-9 * trace
    value_allowed = 1e-10 if near else 1e-8 if dtype == torch.float64 else 1e-5
    assert value.item() == pytest.approx(expected, rel=value_allowed)
    assert (actual.double() - gradient).norm() <= allowed * gradient.norm()


@pytest.mark.parametrize(("d", "slope"), [(4, 1e4), (5, 1e3), (8, 100.0), (20, 5.0)])
def test_pivots_that_hide_a_singular_covariance(d, slope):
    """L has a unit diagonal, so every pivot is 1, and an inverse of size slope^(d - 1)."""
    L = torch.eye(d, dtype=torch.float64) - slope * torch.ones(d, d, dtype=torch.float64).tril(-1)
    S1 = L @ L.T
    S2 = S1.diagonal().max() * torch.eye(d, dtype=torch.float64)
    zero = torch.zeros(d, dtype=torch.float64)
    leaves = [S1.requires_grad_(), S2.requires_grad_()]
    value = gaussian_w2(zero, leaves[0], zero, leaves[1])
    # S2 = s I, so that B^2 = sum over the eigenvalues l of (sqrt l - sqrt s)^2.
    with mpmath.workdps(80):
        values, _ = mpmath.eigsy(mpmath.matrix(S1.tolist()))
        root = mpmath.sqrt(S2[0, 0].item())
        expected = float(sum((mpmath.sqrt(max(v, 0)) - root) ** 2 for v in values))
    assert value.item() == pytest.approx(expected, rel=1e-7)
    gradients = torch.autograd.grad(value, leaves)
    assert all(g.isfinite().all() and g.abs().max() < 1e9 for g in gradients)
