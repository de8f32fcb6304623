"""Moments: mean and covariance of the rows of a matrix, exact for any offset and over any number of processes.

    mean = (1/N) sum_i x_i          cov = (1/N) sum_i (x_i - mean) (x_i - mean)^T        (N - 1 where unbiased)

Each block of at most 256 rows is centred and multiplied in the input's precision (float32 for the 16-bit types, float64
for float64), so an offset costs no digits; blocks, and then processes, are merged in float64 (Chan, Golub and LeVeque,
1983): with n_b rows, mean m_b and scatter S_b each,

    mean = sum_b n_b m_b / N        N cov = sum_b S_b + n_b (m_b - mean) (m_b - mean)^T

Shapes: N rows, d dimensions.
Specification: vqdm_cuda/reference/moments.py.  Kernels: csrc/{cpu,cuda}/moments.* (mean and scatter of one process).
"""

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import all_reduce_sum
from vqdm_cuda.ops._checks import check_floating, check_has_kernels, result_dtype
from vqdm_cuda.ops._once import only_once

__all__ = ["moments"]


def moments(
    x: Tensor,  # [N, d] float64, float32, bfloat16 or float16
    *,
    unbiased: bool = False,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the rows of x, differentiable.

    With a process group: of the rows of all its ranks together, whose numbers may differ and be zero. Every rank of the
    group must call. Each rank's gradient is then that of the sum of all ranks' losses: where every rank computes the
    same loss, the mean of parameter gradients over ranks, as in DistributedDataParallel, is the one-process gradient.

    Returns:
        mean [d] and cov [d, d], float32 (float64 for float64 x). NaN where undefined: no rows at all, or one and
        unbiased.

    Raises:
        ValueError: x is not [N, d] with d >= 1; CUDA tensors on a build without CUDA kernels.
        TypeError: x is not a floating tensor.

    Example:
        >>> mean, cov = moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> mean.tolist(), cov.tolist()
        ([1.0, 1.0], [[1.0, 0.0], [0.0, 0.0]])
    """
    mean, cov = moments_float64(x, unbiased=unbiased, group=group)
    return mean.to(result_dtype(x)), cov.to(result_dtype(x))


def moments_float64(x: Tensor, *, unbiased: bool, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """`moments` before its one rounding to the output type."""
    _check(x)
    check_has_kernels("moments", x)
    mean, scatter = torch.ops.vqdm.moments(x.to(result_dtype(x)))
    if group is None:
        N = x.shape[0]
        return (mean if N > 0 else mean + math.nan), scatter / max(N - 1 if unbiased else N, 0)

    local_n, local_mean = torch.full((), x.shape[0], dtype=torch.float64, device=x.device), mean
    n = all_reduce_sum(local_n, group)
    mean = all_reduce_sum(local_n * local_mean, group) / n
    between = local_mean - mean
    scatter = all_reduce_sum(scatter + local_n * torch.outer(between, between), group)
    return mean, scatter / (n - 1 if unbiased else n).clamp_min(0)


def _check(x: Tensor) -> None:
    check_floating("moments", x=x)
    if x.dim() != 2 or x.shape[1] < 1:
        raise ValueError(f"moments: expected x [N, d] with d >= 1, got {list(x.shape)}")


@torch.library.register_fake("vqdm::moments")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    _check(x)
    d = x.shape[1]
    return x.new_empty(d, dtype=torch.float64), x.new_empty(d, d, dtype=torch.float64)


def _setup_context(ctx, inputs, output) -> None:
    (x,) = inputs
    mean, _ = output
    ctx.save_for_backward(x, mean)


def _backward(ctx, grad_mean: Tensor, grad_scatter: Tensor) -> Tensor:
    x, mean = ctx.saved_tensors
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        # d scatter: 2 sym(G) (x_i - mean). The terms of d mean cancel, because centred rows sum to zero.
        slope = grad_scatter + grad_scatter.mT
        # Of the mean, what x's type holds is taken off the rows; the rest, times the slope, is the same for all.
        centre = mean.to(x.dtype)
        shift = grad_mean / max(x.shape[0], 1) - (mean - centre.double()) @ slope
        gradient = torch.addmm(shift.to(x.dtype), x - centre, slope.to(x.dtype))
    return only_once("moments", gradient, grad_mean, grad_scatter, x)


torch.library.register_autograd("vqdm::moments", _backward, setup_context=_setup_context)
