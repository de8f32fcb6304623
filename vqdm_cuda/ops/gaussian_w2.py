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

Specification: vqdm_cuda/reference/gaussian_w2.py.  Kernels: csrc/{cpu,cuda}/gaussian_w2.* (Jacobi; on
the CPU Newton's iteration at full rank), for larger d _bures_by_library.py (LAPACK's or the device library's).
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._bures_by_library import squared_bures
from vqdm_cuda.ops._checks import check_floating, check_has_kernels, result_dtype, shapes
from vqdm_cuda.ops._once import only_once
from vqdm_cuda.ops._symmetric import define_by_library, own_kernels

__all__ = ["gaussian_w2"]


def gaussian_w2(
    mean1: Tensor,  # [..., d]
    cov1: Tensor,  # [..., d, d]
    mean2: Tensor,  # [..., d]
    cov2: Tensor,  # [..., d, d]
) -> Tensor:  # [...]
    """Squared W2 distance of N(mean1, cov1) and N(mean2, cov2), in float64 inside, differentiable once in all four.

    Leading dimensions broadcast. Covariances are symmetrised; negative eigenvalues, as rounding makes them, count as
    zero. An item that holds NaN or Inf gives NaN, and leaves the others of its batch alone. On a GPU the host waits for
    nothing up to d = 256; beyond, for torch.linalg.

    Returns:
        squared distance [...] >= 0, float32 (float64 where an input is float64).

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, CUDA tensors on a build without CUDA kernels.
        TypeError: an argument that is not a floating tensor.

    Example:
        >>> gaussian_w2(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2))
        tensor(4.)
    """
    check_gaussians("gaussian_w2", mean1, cov1, mean2, cov2)
    check_has_kernels("gaussian_w2", cov1)
    batch = _batch(mean1, cov1, mean2, cov2)
    gradients = torch.is_grad_enabled() and (cov1.requires_grad or cov2.requires_grad)
    return gaussian_w2_and_gradients(
        _expanded(mean1, batch, 1),
        _expanded(cov1, batch, 2),
        _expanded(mean2, batch, 1),
        _expanded(cov2, batch, 2),
        gradients,
    )[0]


def _expanded(x: Tensor, batch: torch.Size, own: int) -> Tensor:
    return x if x.shape[:-own] == batch else x.expand(*batch, *x.shape[-own:])


def gaussian_w2_and_gradients(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(w2 [...], and if asked for, its gradients in cov1 and in cov2 [..., d, d] in float64), unchecked; leading
    dimensions equal."""
    function = torch.ops.vqdm.gaussian_w2 if own_kernels("gaussian_w2", cov1) else torch.ops.vqdm.gaussian_w2_by_library
    return function(mean1, cov1, mean2, cov2, gradients)


def check_gaussians(function: str, mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> None:
    """Raise unless the four are floating tensors on one device that describe Gaussians of one dimension."""
    check_floating(function, mean1=mean1, cov1=cov1, mean2=mean2, cov2=cov2)
    means, covs = (mean1, mean2), (cov1, cov2)
    d = mean1.shape[-1] if mean1.dim() else 0
    if d < 1 or any(m.shape[-1:] != (d,) for m in means) or any(c.dim() < 2 or c.shape[-2:] != (d, d) for c in covs):
        got = shapes(mean1, cov1, mean2, cov2)
        raise ValueError(f"{function}: expected means [..., d] and covariances [..., d, d] of one d >= 1, got {got}")
    try:
        _batch(mean1, cov1, mean2, cov2)
    except RuntimeError:
        got = shapes(mean1, cov1, mean2, cov2)
        raise ValueError(f"{function}: expected leading dimensions that broadcast, got {got}") from None


def _batch(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> torch.Size:
    batch = mean1.shape[:-1]
    if cov1.shape[:-2] == batch and mean2.shape[:-1] == batch and cov2.shape[:-2] == batch:
        return batch  # torch.broadcast_shapes takes longer than the kernel
    return torch.broadcast_shapes(batch, cov1.shape[:-2], mean2.shape[:-1], cov2.shape[:-2])


def _gaussian_w2_by_library(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    bures, grad1, grad2 = squared_bures(cov1, cov2, gradients)
    w2 = (mean1.double() - mean2.double()).square().sum(-1) + bures
    return w2.to(result_dtype(mean1, cov1, mean2, cov2)), grad1, grad2


define_by_library(
    "gaussian_w2_by_library(Tensor mean1, Tensor cov1, Tensor mean2, Tensor cov2, bool gradients) -> "
    "(Tensor w2, Tensor grad_cov1, Tensor grad_cov2)",
    _gaussian_w2_by_library,
)


def _fake(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    check_gaussians("gaussian_w2", mean1, cov1, mean2, cov2)
    batch, d = mean1.shape[:-1], mean1.shape[-1] if gradients else 0
    w2 = mean1.new_empty(batch, dtype=result_dtype(mean1, cov1, mean2, cov2))
    grad1, grad2 = (mean1.new_empty(*batch, d, d, dtype=torch.float64) for _ in range(2))
    return w2, grad1, grad2


def _setup_context(ctx, inputs, output) -> None:
    *gaussians, _ = inputs
    _, grad1, grad2 = output
    ctx.mark_non_differentiable(grad1, grad2)
    ctx.save_for_backward(*gaussians, grad1, grad2)


def _backward(ctx, grad: Tensor, _grad1, _grad2) -> tuple[Tensor | None, ...]:
    *gaussians, grad1, grad2 = ctx.saved_tensors
    mean1, cov1, mean2, cov2 = gaussians
    wanted = ctx.needs_input_grad
    out: list[Tensor | None] = [None] * 5
    with torch.no_grad():
        upstream = grad.double()
        if wanted[0] or wanted[2]:
            slope = (2 * upstream)[..., None] * (mean1.double() - mean2.double())
            out[0] = slope.to(mean1.dtype) if wanted[0] else None
            out[2] = -slope.to(mean2.dtype) if wanted[2] else None
        out[1] = (upstream[..., None, None] * grad1).to(cov1.dtype) if wanted[1] else None
        out[3] = (upstream[..., None, None] * grad2).to(cov2.dtype) if wanted[3] else None
    return tuple(None if g is None else only_once("gaussian_w2", g, grad, *gaussians) for g in out)


for _name in ("vqdm::gaussian_w2", "vqdm::gaussian_w2_by_library"):
    torch.library.register_fake(_name, _fake)
    torch.library.register_autograd(_name, _backward, setup_context=_setup_context)
