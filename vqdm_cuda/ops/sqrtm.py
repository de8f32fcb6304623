"""Square root of symmetric positive semi-definite matrices.

    a = V diag(l) V^T        sqrtm(a) = V diag(sqrt(max(l, 0))) V^T        of the symmetrised (a + a^T) / 2

The gradient G solves root G + G root = upstream: in the eigenbasis, a division by (root_i + root_j), never by a
difference of eigenvalues, so repeated ones are harmless; a pair of zeros, where the derivative is infinite, gets 0.

Specification: vqdm_cuda/reference/sqrtm.py.  Kernels: csrc/{cpu,cuda}/sqrtm.* (Jacobi), for larger d LAPACK's or the
device library's.
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._checks import check_floating, check_has_kernels, result_dtype
from vqdm_cuda.ops._once import only_once
from vqdm_cuda.ops._symmetric import define_by_library, finite_or_identity, negligible, own_kernels, symmetrized

__all__ = ["sqrtm"]


def sqrtm(
    a: Tensor,  # [..., d, d] float64, float32, bfloat16 or float16
) -> Tensor:  # [..., d, d]
    """The symmetric square root of each matrix, computed in float64 and differentiable once.

    Negative eigenvalues, as rounding makes them, count as zero. A matrix that holds NaN or Inf gives NaN, and leaves
    the others of its batch alone. On a GPU the host waits for nothing up to d = 256; beyond, for torch.linalg.

    Returns:
        root [..., d, d], float32 (float64 for float64 a).

    Raises:
        ValueError: a is not [..., d, d] with d >= 1; CUDA tensors on a build without CUDA kernels.
        TypeError: a is not a floating tensor.

    Example:
        >>> sqrtm(torch.tensor([[4.0, 0.0], [0.0, 9.0]])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    return root_eigen(a)[0]


def root_eigen(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [..., d, d]
    """(root [..., d, d], and in float64, not differentiable: the roots of the eigenvalues [..., d] in any order, NaN
    for an item that is not finite, and the eigenvectors [..., d, d] as columns)."""
    _check(a)
    check_has_kernels("sqrtm", a)
    return torch.ops.vqdm.sqrtm(a) if own_kernels("sqrtm", a) else torch.ops.vqdm.sqrtm_by_library(a)


def _check(a: Tensor) -> None:
    check_floating("sqrtm", a=a)
    if a.dim() < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 1:
        raise ValueError(f"sqrtm: expected a [..., d, d] with d >= 1, got {list(a.shape)}")


def _sqrtm_by_library(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    safe, finite = finite_or_identity(symmetrized(a))
    values, V = torch.linalg.eigh(safe)
    roots = values.clamp_min(0).sqrt() + torch.where(finite, 0.0, torch.nan)[..., None]
    root = (V * roots[..., None, :]) @ V.mT
    return ((root + root.mT) / 2).to(result_dtype(a)), roots, V.contiguous()


define_by_library("sqrtm_by_library(Tensor a) -> (Tensor root, Tensor roots, Tensor vectors)", _sqrtm_by_library)


def _fake(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check(a)
    wide = a.new_empty(a.shape, dtype=torch.float64)
    return wide.to(result_dtype(a)), a.new_empty(a.shape[:-1], dtype=torch.float64), torch.empty_like(wide)


def _setup_context(ctx, inputs, output) -> None:
    (a,) = inputs
    _, roots, V = output
    ctx.mark_non_differentiable(roots, V)
    ctx.save_for_backward(a, roots, V)


def _backward(ctx, grad: Tensor, _grad_roots, _grad_vectors) -> Tensor:
    a, roots, V = ctx.saved_tensors
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        sums = roots[..., :, None] + roots[..., None, :]
        largest = roots.amax(-1)[..., None, None]
        zero_pair = sums <= negligible(largest.square(), V.shape[-1]).sqrt()
        slope = torch.where(zero_pair, 0.0, 1 / torch.where(zero_pair, 1.0, sums))
        G = V @ (slope * (V.mT @ grad.double() @ V)) @ V.mT
        gradient = ((G + G.mT) / 2).to(a.dtype)
    return only_once("sqrtm", gradient, grad, a)


for _name in ("vqdm::sqrtm", "vqdm::sqrtm_by_library"):
    torch.library.register_fake(_name, _fake)
    torch.library.register_autograd(_name, _backward, setup_context=_setup_context)
