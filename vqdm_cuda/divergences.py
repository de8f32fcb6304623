"""Divergences of Gaussians that the paper compares with the Wasserstein distance; both need covariances of full rank.

    KL   = 1/2 (D^T S2^-1 D + tr(S2^-1 S1 - I) + ln det S2 / det S1)   Wasserstein VQ, Lemma 5;  D = m1 - m2
    Bhat = 1/8 D^T S^-1 D + 1/2 ln(det S / sqrt(det S1 det S2))        Lemma 6;  S = (S1 + S2) / 2

Everything is computed in float64 and rounded once.
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._checks import has_values, result_dtype
from vqdm_cuda.ops._symmetric import finite_or_identity, symmetrized
from vqdm_cuda.ops.gaussian_w2 import check_gaussians

__all__ = ["gaussian_bhattacharyya", "gaussian_kl"]


def gaussian_kl(
    mean1: Tensor,  # [..., d]
    cov1: Tensor,  # [..., d, d]
    mean2: Tensor,  # [..., d]
    cov2: Tensor,  # [..., d, d]
) -> Tensor:  # [...]
    """Kullback-Leibler divergence of N(mean1, cov1) from N(mean2, cov2), in nats (Lemma 5). Differentiable.

    Leading dimensions broadcast. An item that holds NaN or Inf gives NaN. Looking for singular covariances makes the
    host wait for a GPU; compiled code does not look, and leaves the error to torch's factorisation.

    Raises:
        ValueError: shapes that do not fit, different devices, a covariance that is singular to the precision of its
            dtype.
        TypeError: an argument that is not a floating tensor.
    """
    check_gaussians("gaussian_kl", mean1, cov1, mean2, cov2)
    L1, L2 = _factor("gaussian_kl", "cov1", cov1), _factor("gaussian_kl", "cov2", cov2)
    ratio = torch.linalg.solve_triangular(L2, L1, upper=False)  # lower triangular; S2^-1 S1 has its singular values
    # tr - d + ln det, written so that no term is negative: with diagonal r, r^2 - 1 - 2 ln r, and the squares below it.
    u = ratio.diagonal(dim1=-2, dim2=-1) - 1
    divergence = (u.square() + 2 * (u - u.log1p())).sum(-1) + ratio.tril(-1).square().sum((-2, -1))
    return ((divergence + _mahalanobis(L2, mean1, mean2)) / 2).to(result_dtype(mean1, cov1, mean2, cov2))


def gaussian_bhattacharyya(
    mean1: Tensor,  # [..., d]
    cov1: Tensor,  # [..., d, d]
    mean2: Tensor,  # [..., d]
    cov2: Tensor,  # [..., d, d]
) -> Tensor:  # [...]
    """Bhattacharyya distance of N(mean1, cov1) and N(mean2, cov2) (Lemma 6). Differentiable.

    Leading dimensions broadcast. An item that holds NaN or Inf gives NaN. Looking for singular covariances makes the
    host wait for a GPU; compiled code does not look, and leaves the error to torch's factorisation.

    Raises:
        ValueError: shapes that do not fit, different devices, a covariance that is singular to the precision of its
            dtype.
        TypeError: an argument that is not a floating tensor.
    """
    check_gaussians("gaussian_bhattacharyya", mean1, cov1, mean2, cov2)
    L1, L2 = _factor("gaussian_bhattacharyya", "cov1", cov1), _factor("gaussian_bhattacharyya", "cov2", cov2)
    # The mean of two matrices of full rank has it too; only NaN can fail here, and stays NaN.
    L, _ = torch.linalg.cholesky_ex((L1 @ L1.mT + L2 @ L2.mT) / 2)
    half_log_ratio = _half_log_det(L) - (_half_log_det(L1) + _half_log_det(L2)) / 2
    return (_mahalanobis(L, mean1, mean2) / 8 + half_log_ratio).to(result_dtype(mean1, cov1, mean2, cov2))


def _factor(function: str, name: str, cov: Tensor) -> Tensor:  # [..., d, d] -> lower triangular float64 [..., d, d]
    S, finite = finite_or_identity(symmetrized(cov))
    values = torch.linalg.eigvalsh(S.detach())
    # The rule of matrix_rank, at the precision in which the matrix was given.
    smallest, largest = values[..., 0], values[..., -1]
    singular = smallest <= cov.shape[-1] * torch.finfo(cov.dtype).eps * largest
    if has_values(cov) and singular.any():
        raise ValueError(
            f"{function}: expected {name} of full rank, got eigenvalues from "
            f"{smallest[singular][0].item():.3g} to {largest[singular][0].item():.3g}"
        )
    nan = torch.where(finite, 0.0, torch.nan)[..., None, None]
    return torch.linalg.cholesky(S) + nan


def _half_log_det(L: Tensor) -> Tensor:  # lower triangular [..., d, d] -> [...], 1/2 ln det L L^T
    return L.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _mahalanobis(L: Tensor, mean1: Tensor, mean2: Tensor) -> Tensor:  # -> [...], D^T (L L^T)^-1 D
    difference = (mean1.double() - mean2.double())[..., None]
    return torch.linalg.solve_triangular(L, difference, upper=False).square().sum((-2, -1))
