"""Square root of symmetric positive semi-definite matrices.

    a = V diag(l) V^T        sqrtm(a) = V diag(sqrt(max(l, 0))) V^T        of the symmetrised (a + a^T) / 2

The gradient G solves root G + G root = upstream: in the eigenbasis, a division by (root_i + root_j), never by a
difference of eigenvalues, so repeated ones are harmless; a pair of zeros, where the derivative is infinite, gets 0.

Specification: vqdm_cuda/reference/sqrtm.py.
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._checks import check_floating, result_dtype
from vqdm_cuda.ops._once import only_once
from vqdm_cuda.ops._symmetric import finite_or_identity, negligible, symmetrized

__all__ = ["sqrtm"]


def sqrtm(
    a: Tensor,  # [..., d, d] float64, float32, bfloat16 or float16
) -> Tensor:  # [..., d, d]
    """The symmetric square root of each matrix, computed in float64 and differentiable once.

    Negative eigenvalues, as rounding makes them, count as zero. A matrix that holds NaN or Inf gives NaN, and leaves
    the others of its batch alone. On a GPU, the host waits for the status of torch's eigendecomposition.

    Returns:
        root [..., d, d], float32 (float64 for float64 a).

    Raises:
        ValueError: a is not [..., d, d] with d >= 1.
        TypeError: a is not a floating tensor.

    Example:
        >>> sqrtm(torch.tensor([[4.0, 0.0], [0.0, 9.0]])).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    _check(a)
    return _Sqrtm.apply(symmetrized(a)).to(result_dtype(a))


def _check(a: Tensor) -> None:
    check_floating("sqrtm", a=a)
    if a.dim() < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 1:
        raise ValueError(f"sqrtm: expected a [..., d, d] with d >= 1, got {list(a.shape)}")


class _Sqrtm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:  # symmetric float64 [..., d, d]
        safe, finite = finite_or_identity(a)
        values, V = torch.linalg.eigh(safe)
        roots = values.clamp_min(0).sqrt()
        # Both are NaN where a was not finite, and so is the gradient.
        nan = torch.where(finite, 0.0, torch.nan)[..., None]
        ctx.save_for_backward(a, roots + nan, V)
        root = (V * roots[..., None, :]) @ V.mT
        return (root + root.mT) / 2 + nan[..., None]

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        a, roots, V = ctx.saved_tensors
        with torch.no_grad():
            sums = roots[..., :, None] + roots[..., None, :]
            largest = roots.amax(-1)[..., None, None]
            zero_pair = sums <= negligible(largest.square(), V.shape[-1]).sqrt()
            slope = torch.where(zero_pair, 0.0, 1 / torch.where(zero_pair, 1.0, sums))
            G = V @ (slope * (V.mT @ grad @ V)) @ V.mT
        return only_once("sqrtm", G, grad, a)
