"""Moments: mean and covariance of the rows of a matrix, exact for any offset and over any number of processes.

    mean = (1/N) sum_i x_i          cov = (1/N) sum_i (x_i - mean) (x_i - mean)^T        (N - 1 where unbiased)

Each block of at most 256 rows is centred and multiplied in the input's precision (float32 for the 16-bit types, float64
for float64), so an offset costs no digits; blocks, and then processes, are merged in float64 (Chan, Golub and LeVeque,
1983): with n_b rows, mean m_b and scatter S_b each,

    mean = sum_b n_b m_b / N        N cov = sum_b S_b + n_b (m_b - mean) (m_b - mean)^T

so that one all-reduce of every process's n_b and m_b, and of the sum of the S_b, tells them all.

Shapes: N rows, d dimensions.
Specification: vqdm_cuda/reference/moments.py.  Kernels: csrc/{cpu,cuda}/moments.* (one process).
"""

import math

import torch
import torch.distributed as dist
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

    Rows of float32 and shorter types are good for spreads of 1e-18 to 1e18, whose squares float32 holds.

    With a process group: of the rows of all its ranks together, whose numbers may differ and be zero. Every rank of the
    group must call, and call backward, with x requiring a gradient on every rank or on none. Each rank's gradient is
    then that of the sum of all ranks' losses: where every rank computes the same loss, the mean of parameter gradients
    over ranks, as in DistributedDataParallel, is the one-process gradient.

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
    x = x.to(result_dtype(x))
    if group is not None:
        return _GlobalMoments.apply(x, unbiased, group)
    mean, cov = torch.ops.vqdm.moments(x, _divisor(x, unbiased))
    return (mean if x.shape[0] > 0 else mean + math.nan), cov


def _check(x: Tensor) -> None:
    check_floating("moments", x=x)
    if x.dim() != 2 or x.shape[1] < 1:
        raise ValueError(f"moments: expected x [N, d] with d >= 1, got {list(x.shape)}")


def _divisor(x: Tensor, unbiased: bool) -> int:
    return max(x.shape[0] - 1, 0) if unbiased else x.shape[0]


# One process ---------------------------------------------------------------------------------------------------------


@torch.library.register_fake("vqdm::moments")
def _(x: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    _check(x)
    d = x.shape[1]
    return x.new_empty(d, dtype=torch.float64), x.new_empty(d, d, dtype=torch.float64)


@torch.library.register_fake("vqdm::moments_backward")
def _(x: Tensor, mean: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.divisor = inputs
    mean, _ = output
    ctx.save_for_backward(x, mean)


def _backward(ctx, grad_mean: Tensor, grad_cov: Tensor) -> tuple[Tensor, None]:
    x, mean = ctx.saved_tensors
    with torch.no_grad():
        grad_x = moments_gradient(x, mean, grad_mean / max(x.shape[0], 1), grad_cov / ctx.divisor)
    return only_once("moments", grad_x, grad_mean, grad_cov, x), None


torch.library.register_autograd("vqdm::moments", _backward, setup_context=_setup_context)


def moments_gradient(
    x: Tensor,  # [N, d] float32 or float64
    mean: Tensor,  # [d] float64
    grad_sum: Tensor,  # [d] float64, of sum_i x_i
    grad_scatter: Tensor,  # [d, d] float64, of sum_i (x_i - mean)(x_i - mean)^T
) -> Tensor:  # [N, d] of x's type
    """(x - mean) (G + G^T) + grad_sum. d scatter has no term in d mean, because centred rows sum to zero."""
    if not x.is_cuda:
        return torch.ops.vqdm.moments_backward(x, mean, grad_sum, grad_scatter)
    with torch.autocast("cuda", enabled=False):
        # Of the mean, what x's type holds is taken off the rows; the rest, times the slope, is the same for all.
        slope, centre = grad_scatter + grad_scatter.mT, mean.to(x.dtype)
        shift = grad_sum - (mean - centre.double()) @ slope
        return torch.addmm(shift.to(x.dtype), x - centre, slope.to(x.dtype))


# All processes of a group --------------------------------------------------------------------------------------------


@torch.no_grad()
def global_moments(
    x: Tensor,  # [N, d] float32 or float64
    unbiased: bool,
    group: ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mean [d] and cov [d, d] of the rows of all ranks, their number, and the divisor of cov; float64."""
    N, d = x.shape
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    mean, scatter = torch.ops.vqdm.moments(x, 1)
    parts = x.new_zeros(d * d + ranks * (d + 1), dtype=torch.float64)
    sums, own = parts[: d * d].view(d, d), parts[d * d :].view(ranks, d + 1)
    sums.copy_(scatter)
    own[rank, 0] = N
    own[rank, 1:] = mean
    parts = all_reduce_sum(parts, group)
    scatter, own = parts[: d * d].view(d, d), parts[d * d :].view(ranks, d + 1)
    counts, means = own[:, 0], own[:, 1:]
    n = counts.sum()
    # Means as differences from one of them: a far offset would round them. Ranks without rows have weight 0.
    first = means.index_select(0, counts.argmax()[None])[0]
    shifts = torch.where(counts[:, None] > 0, means - first, 0.0)
    shift = (counts[:, None] * shifts).sum(0) / n
    between = shifts - shift
    divisor = (n - 1 if unbiased else n).clamp_min(0)
    return first + shift, (scatter + (counts[:, None] * between).mT @ between) / divisor, n, divisor


class _GlobalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, unbiased: bool, group: ProcessGroup) -> tuple[Tensor, Tensor]:
        mean, cov, n, divisor = global_moments(x, unbiased, group)
        ctx.save_for_backward(x, mean, n, divisor)
        ctx.group = group
        return mean, cov

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_cov: Tensor) -> tuple[Tensor, None, None]:
        x, mean, n, divisor = ctx.saved_tensors
        with torch.no_grad():
            grad_sum, grad_scatter = all_reduced(grad_mean / n, grad_cov / divisor, ctx.group)
            grad_x = moments_gradient(x, mean, grad_sum, grad_scatter)
        return only_once("moments", grad_x, grad_mean, grad_cov, x), None, None


def all_reduced(vector: Tensor, matrix: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:  # [d], [d, d]
    """Their sums over the ranks, by one all-reduce."""
    both = all_reduce_sum(torch.cat([vector, matrix.reshape(-1)]), group)
    return both[: vector.numel()], both[vector.numel() :].view_as(matrix)
