"""The squared Bures distance and its gradients by LAPACK, or by the device's library: for what is too large for the
Jacobi kernels. Formulas: gaussian_w2.py.

Where both covariances have full rank by a wide margin, their Cholesky factors do; otherwise all of the batch takes the
roots of the eigenvalues, with pseudo-inverses. The two covariances go through it stacked, as [2, ..., d, d].
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._symmetric import finite_or_identity, negligible, symmetrized

# Cholesky factors will do where 1 / |L^-1|_F^2, which is at most the least eigenvalue, is above this share of the
# largest variance. (Pivots alone would not tell.) An eigenvalue counts as zero at d u.
_FULL_RANK = 1e-10

# The least ratio of eigenvalues of M M^T for which its eigenvectors are as good as singular vectors need to be here.
_WELL_CONDITIONED = 1e-5


def squared_bures(cov1: Tensor, cov2: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:  # [..., d, d]
    """B^2 [...] and, if asked for, dB^2/dS1 and dB^2/dS2 [..., d, d]; float64."""
    S = symmetrized(torch.stack([cov1.double(), cov2.double()]))
    all_are_finite = bool(S.sum().isfinite())  # or, of huge numbers, so many that they are looked at one by one
    if not all_are_finite:
        S, finite = finite_or_identity(S)
    L, info = torch.linalg.cholesky_ex(S)
    inverse = torch.linalg.solve_triangular(L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device), upper=False)
    largest = S.diagonal(dim1=-2, dim2=-1).amax(-1)
    if bool(((info == 0) & (inverse.square().sum((-2, -1)) * largest < 1 / _FULL_RANK)).all()):
        value, T = _of_full_rank(L, inverse, gradients)
    else:
        value, T = _of_any_rank(S, gradients)
    if not all_are_finite:
        nan = torch.where(finite.all(0), 0.0, torch.nan)
        value, T = value + nan, T + nan[..., None, None]
    gradient = ((T + T.mT) / -2).contiguous()
    gradient.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return value, gradient[0].clone(), gradient[1].clone()


def _of_full_rank(L: Tensor, inverse: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:  # [2, ..., d, d] triangular
    """B^2, and the two transport maps."""
    L1, L2 = L
    W = _polar(L1.mT @ L2)
    moved1 = L2 @ W.mT  # T12 L1
    value = (L1 - moved1).square_().sum((-2, -1))
    if not gradients:
        return value, _none(L)
    return value, torch.stack([moved1, L1 @ W]) @ inverse


def _polar(M: Tensor) -> Tensor:  # [..., d, d] of full rank
    """The orthogonal W nearest to M: P Q^T of M = P Sig Q^T.

    The eigenvectors of M M^T are those of P, at a third of the time; they lose twice the digits that the singular
    values spread over, so they serve only where that is little. What W then lacks in orthogonality, one Newton-Schulz
    step makes good to its square.
    """
    M = M / M.abs().amax((-2, -1), keepdim=True)  # squares neither overflow nor vanish
    values, P = torch.linalg.eigh(M @ M.mT)
    if bool((values[..., 0] > _WELL_CONDITIONED * values[..., -1]).all()):
        W = P @ ((P / values.sqrt()[..., None, :]).mT @ M)
        return 1.5 * W - 0.5 * (W @ (W.mT @ W))
    P, _, Qt = torch.linalg.svd(M)
    return P @ Qt


def _of_any_rank(S: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:  # [2, ..., d, d]
    """B^2, and the two transport maps of least norm."""
    values, V = torch.linalg.eigh(S)
    roots = values.clamp_min(0).sqrt()
    L1, L2 = V * roots[..., None, :]
    P, sigma, Qt = torch.linalg.svd(L1.mT @ L2)
    value = (L1 - L2 @ (P @ Qt).mT).square().sum((-2, -1))
    if not gradients:
        return value, _none(S)
    W = (P * (sigma > negligible(sigma[..., :1], sigma.shape[-1]))[..., None, :]) @ Qt
    return value, _map(torch.stack([L2 @ W.mT, L1 @ W]), V, roots)


def _none(S: Tensor) -> Tensor:
    return S.new_empty(*S.shape[:-2], 0, 0)


def _map(
    moved: Tensor,  # [..., d, d] T L, what the transport map T makes of the factor L = V diag(roots)
    V: Tensor,  # [..., d, d]
    roots: Tensor,  # [..., d]
) -> Tensor:  # [..., d, d]
    """The symmetric matrix T of least norm with T L = moved on the range of L."""
    largest = roots.amax(-1, keepdim=True)
    kept = roots.square() > negligible(largest.square(), roots.shape[-1])
    inverse = torch.where(kept, 1 / torch.where(kept, roots, 1.0), 0.0)
    # In the eigenbasis the columns of the range are known; its rows follow by symmetry, and the rest gets 0.
    T = V.mT @ (moved * inverse[..., None, :])
    T = (T + T.mT) / torch.where(kept[..., None, :] & kept[..., :, None], 2.0, 1.0)
    return V @ T @ V.mT
