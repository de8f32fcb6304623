"""The squared Bures distance and its gradients by LAPACK, or by the device's library: for what is too large for the
Jacobi kernels. Formulas: gaussian_w2.py.

Where both covariances have full rank by a wide margin, their Cholesky factors do; otherwise all of the batch takes the
roots of the eigenvalues, with pseudo-inverses.
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._symmetric import finite_or_identity, negligible, symmetrized

# The least square of a pivot, relative to the largest variance, for which Cholesky factors will do. Eigenvalues may be
# smaller than that by a factor of about d, and count as zero at d u.
_FULL_RANK = 1e-10


def squared_bures(cov1: Tensor, cov2: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:  # [..., d, d]
    """B^2 [...] and, if asked for, dB^2/dS1 and dB^2/dS2 [..., d, d]; float64."""
    S1, finite1 = finite_or_identity(symmetrized(cov1))
    S2, finite2 = finite_or_identity(symmetrized(cov2))
    nan = torch.where(finite1 & finite2, 0.0, torch.nan)
    (L1, info1), (L2, info2) = torch.linalg.cholesky_ex(S1), torch.linalg.cholesky_ex(S2)
    if bool((_has_full_rank(S1, L1, info1) & _has_full_rank(S2, L2, info2)).all()):
        value, grads = _of_full_rank(L1, L2, gradients)
    else:
        value, grads = _of_any_rank(S1, S2, gradients)
    if not gradients:
        empty = value.new_empty(*value.shape, 0, 0)
        return value + nan, empty, empty.clone()
    return value + nan, grads[0] + nan[..., None, None], grads[1] + nan[..., None, None]


def _has_full_rank(S: Tensor, L: Tensor, info: Tensor) -> Tensor:  # -> bool [...]
    pivots, variances = L.diagonal(dim1=-2, dim2=-1).square(), S.diagonal(dim1=-2, dim2=-1)
    return (info == 0) & (pivots.amin(-1) > _FULL_RANK * variances.amax(-1))


def _of_full_rank(L1: Tensor, L2: Tensor, gradients: bool) -> tuple[Tensor, list[Tensor]]:
    P, _, Qt = torch.linalg.svd(L1.mT @ L2)
    W = P @ Qt
    moved1 = L2 @ W.mT  # T12 L1
    value = (L1 - moved1).square().sum((-2, -1))
    if not gradients:
        return value, []
    maps = (
        torch.linalg.solve_triangular(L, moved, upper=False, left=False) for L, moved in ((L1, moved1), (L2, L1 @ W))
    )
    eye = torch.eye(L1.shape[-1], dtype=L1.dtype, device=L1.device)
    return value, [eye - (T + T.mT) / 2 for T in maps]


def _of_any_rank(S1: Tensor, S2: Tensor, gradients: bool) -> tuple[Tensor, list[Tensor]]:
    roots1, V1 = _root_eigenvalues(S1)
    roots2, V2 = _root_eigenvalues(S2)
    L1, L2 = V1 * roots1[..., None, :], V2 * roots2[..., None, :]
    P, sigma, Qt = torch.linalg.svd(L1.mT @ L2)
    value = (L1 - L2 @ (P @ Qt).mT).square().sum((-2, -1))
    if not gradients:
        return value, []
    W = (P * (sigma > negligible(sigma[..., :1], sigma.shape[-1]))[..., None, :]) @ Qt
    return value, [_identity_minus(L2 @ W.mT, V1, roots1), _identity_minus(L1 @ W, V2, roots2)]


def _root_eigenvalues(S: Tensor) -> tuple[Tensor, Tensor]:  # [..., d, d] -> [..., d] >= 0, [..., d, d]
    values, V = torch.linalg.eigh(S)
    return values.clamp_min(0).sqrt(), V


def _identity_minus(
    moved: Tensor,  # [..., d, d] T L, what the transport map T makes of the factor L = V diag(roots)
    V: Tensor,  # [..., d, d]
    roots: Tensor,  # [..., d]
) -> Tensor:  # [..., d, d]
    """I - T, where T is the symmetric matrix of least norm with T L = moved on the range of L."""
    largest = roots.amax(-1, keepdim=True)
    kept = roots.square() > negligible(largest.square(), roots.shape[-1])
    inverse = torch.where(kept, 1 / torch.where(kept, roots, 1.0), 0.0)
    # In the eigenbasis the columns of the range are known; its rows follow by symmetry, and the rest gets 0.
    T = V.mT @ (moved * inverse[..., None, :])
    T = (T + T.mT) / torch.where(kept[..., None, :] & kept[..., :, None], 2.0, 1.0)
    T = V @ T @ V.mT
    return torch.eye(V.shape[-1], dtype=V.dtype, device=V.device) - (T + T.mT) / 2
