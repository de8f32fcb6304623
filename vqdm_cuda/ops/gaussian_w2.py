"""Squared quadratic Wasserstein distance between Gaussians (Olkin and Pukelsheim, 1982; Bures).

    W2^2 = ||m1 - m2||^2 + B^2        B^2 = tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

Computed as an orthogonal Procrustes problem: with factors S1 = L1 L1^T, S2 = L2 L2^T, M = L1^T L2 = P Sig Q^T and
W = P Q^T,

    B^2 = ||L1 - L2 W^T||_F^2

which is never negative and does not cancel where the covariances agree. Gradients, with T12 = L2 W^T L1^-1 the optimal
transport map and T21 = L1 W L2^-1 its inverse:

    dB^2/dS1 = I - T12        dB^2/dS2 = I - T21        dW2^2/dm1 = 2 (m1 - m2) = -dW2^2/dm2

No difference of eigenvalues occurs. At deficient rank the inverses are pseudo-inverses, and W in the gradient is the
partial isometry of the nonzero singular values: finite, and exact for what moves the rows of data with that covariance.

Specification: vqdm_cuda/reference/gaussian_w2.py.
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._checks import check_floating, result_dtype, shapes
from vqdm_cuda.ops._once import only_once
from vqdm_cuda.ops._symmetric import finite_or_identity, negligible, symmetrized

__all__ = ["gaussian_w2"]


def gaussian_w2(
    mean1: Tensor,  # [..., d]
    cov1: Tensor,  # [..., d, d]
    mean2: Tensor,  # [..., d]
    cov2: Tensor,  # [..., d, d]
) -> Tensor:  # [...]
    """Squared W2 distance of N(mean1, cov1) and N(mean2, cov2), in float64 inside, differentiable once in all four.

    Leading dimensions broadcast. Covariances are symmetrised; negative eigenvalues, as rounding makes them, count as
    zero. An item that holds NaN or Inf gives NaN, and leaves the others of its batch alone. On a GPU, the host waits
    for the status of torch's factorisations.

    Returns:
        squared distance [...] >= 0, float32 (float64 where an input is float64).

    Raises:
        ValueError: shapes that do not fit, tensors on different devices.
        TypeError: an argument that is not a floating tensor.

    Example:
        >>> gaussian_w2(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2))
        tensor(4.)
    """
    check_gaussians("gaussian_w2", mean1, cov1, mean2, cov2)
    batch = torch.broadcast_shapes(mean1.shape[:-1], cov1.shape[:-2], mean2.shape[:-1], cov2.shape[:-2])
    difference = (mean1.double() - mean2.double()).expand(*batch, -1)
    S1 = symmetrized(cov1).expand(*batch, -1, -1)
    S2 = symmetrized(cov2).expand(*batch, -1, -1)
    return (difference.square().sum(-1) + _SquaredBures.apply(S1, S2)).to(result_dtype(mean1, cov1, mean2, cov2))


def check_gaussians(function: str, mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> None:
    """Raise unless the four are floating tensors on one device that describe Gaussians of one dimension."""
    check_floating(function, mean1=mean1, cov1=cov1, mean2=mean2, cov2=cov2)
    means, covs = (mean1, mean2), (cov1, cov2)
    d = mean1.shape[-1] if mean1.dim() else 0
    if d < 1 or any(m.shape[-1:] != (d,) for m in means) or any(c.dim() < 2 or c.shape[-2:] != (d, d) for c in covs):
        got = shapes(mean1, cov1, mean2, cov2)
        raise ValueError(f"{function}: expected means [..., d] and covariances [..., d, d] of one d >= 1, got {got}")
    try:
        torch.broadcast_shapes(*(m.shape[:-1] for m in means), *(c.shape[:-2] for c in covs))
    except RuntimeError:
        got = shapes(mean1, cov1, mean2, cov2)
        raise ValueError(f"{function}: expected leading dimensions that broadcast, got {got}") from None


class _SquaredBures(torch.autograd.Function):
    @staticmethod
    def forward(ctx, S1: Tensor, S2: Tensor) -> Tensor:  # symmetric float64 [..., d, d]
        safe1, finite1 = finite_or_identity(S1)
        safe2, finite2 = finite_or_identity(S2)
        nan = torch.where(finite1 & finite2, 0.0, torch.nan)
        roots1, V1 = _root_eigenvalues(safe1)
        roots2, V2 = _root_eigenvalues(safe2)
        L1, L2 = V1 * roots1[..., None, :], V2 * roots2[..., None, :]
        P, sigma, Qt = torch.linalg.svd(L1.mT @ L2)
        ctx.save_for_backward(S1, S2, L1, L2, V1, V2, roots1, roots2, P, sigma, Qt, nan)
        return (L1 - L2 @ (P @ Qt).mT).square().sum((-2, -1)) + nan

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        S1, S2, L1, L2, V1, V2, roots1, roots2, P, sigma, Qt, nan = ctx.saved_tensors
        with torch.no_grad():
            kept = sigma > negligible(sigma[..., :1], sigma.shape[-1])
            W = (P * kept[..., None, :]) @ Qt
            upstream = (grad + nan)[..., None, None]
            grad1 = upstream * _identity_minus(L2 @ W.mT, V1, roots1)
            grad2 = upstream * _identity_minus(L1 @ W, V2, roots2)
        return only_once("gaussian_w2", grad1, grad, S1, S2), only_once("gaussian_w2", grad2, grad, S1, S2)


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
    eye = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
    return eye - V @ T @ V.mT
