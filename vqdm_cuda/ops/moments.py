"""Moments: mean and covariance of the rows of a matrix, exact for any offset and over any number of processes.

    mean = (1/N) sum_i x_i          cov = (1/N) sum_i (x_i - mean) (x_i - mean)^T        (N - 1 where unbiased)

Each block of at most 256 rows is centred and multiplied in the input's precision (float32 for the 16-bit types, float64
for float64), so an offset costs no digits; blocks, and then processes, are merged in float64 (Chan, Golub and LeVeque,
1983): with n_b rows, mean m_b and scatter S_b each,

    mean = sum_b n_b m_b / N        N cov = sum_b S_b + n_b (m_b - mean) (m_b - mean)^T

Shapes: N rows, d dimensions.
Specification: vqdm_cuda/reference/moments.py.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import all_reduce_sum
from vqdm_cuda.ops._checks import check_floating, result_dtype
from vqdm_cuda.ops._once import only_once

__all__ = ["moments"]

_BLOCK_ROWS = 256
_NUMBERS_AT_ONCE = 1 << 22  # of rows or of scatters in flight: 16 MB of float32


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
        ValueError: x is not [N, d] with d >= 1.
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
    n = torch.full((), x.shape[0], dtype=torch.float64, device=x.device)
    mean, scatter = _LocalMoments.apply(x)
    if group is not None:
        local_n, local_mean = n, mean
        n = all_reduce_sum(local_n, group)
        mean = all_reduce_sum(local_n * local_mean, group) / n
        between = local_mean - mean
        scatter = all_reduce_sum(scatter + local_n * torch.outer(between, between), group)
    else:
        mean = mean * (n / n)  # NaN for no rows
    return mean, scatter / (n - 1 if unbiased else n).clamp_min(0)


def _check(x: Tensor) -> None:
    check_floating("moments", x=x)
    if x.dim() != 2 or x.shape[1] < 1:
        raise ValueError(f"moments: expected x [N, d] with d >= 1, got {list(x.shape)}")


class _LocalMoments(torch.autograd.Function):
    """(mean [d], scatter [d, d] = sum_i (x_i - mean)(x_i - mean)^T) of this process's rows, float64; zeros for none."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:  # [N, d]
        with torch.autocast(x.device.type, enabled=False):
            mean, scatter = _merged_blocks(x)
        ctx.save_for_backward(x, mean)
        return mean, scatter

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_scatter: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        working = result_dtype(x)
        # d scatter: 2 sym(G) (x_i - mean). The terms of d mean cancel, because centred rows sum to zero.
        slope = (grad_scatter + grad_scatter.mT).to(working)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rows = _centred(x.to(working), mean) @ slope
            gradient = (rows + (grad_mean / max(x.shape[0], 1)).to(working)).to(x.dtype)
        return only_once("moments", gradient, grad_mean, grad_scatter, x)


def _merged_blocks(x: Tensor) -> tuple[Tensor, Tensor]:  # [N, d] -> float64 [d], [d, d]
    N, d = x.shape
    whole = N // _BLOCK_ROWS * _BLOCK_ROWS
    at_once = max(1, _NUMBERS_AT_ONCE // (d * max(d, _BLOCK_ROWS))) * _BLOCK_ROWS
    pieces = [_blocks(piece.unflatten(0, (-1, _BLOCK_ROWS))) for piece in x[:whole].split(at_once) if whole]
    if whole < N:
        pieces.append(_blocks(x[whole:][None]))
    if not pieces:
        return x.new_zeros(d, dtype=torch.float64), x.new_zeros(d, d, dtype=torch.float64)

    sizes = torch.cat([torch.full_like(errors[:, :1], rows) for rows, _, errors, _ in pieces])  # [blocks, 1]
    centres = torch.cat([centres for _, centres, _, _ in pieces])  # [blocks, d]
    errors = torch.cat([errors for _, _, errors, _ in pieces])
    shifts = (centres - centres[0]) + errors  # of the blocks' means from a common origin: a far mean would round them
    shift = (sizes * shifts).sum(0) / N
    between = shifts - shift
    return centres[0] + shift, sum(scatter for *_, scatter in pieces) + (sizes * between).mT @ between


def _blocks(x: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:  # [blocks, n, d]
    """n, and in float64: centres [blocks, d], means less centres [blocks, d], summed scatters about means [d, d]."""
    n = x.shape[1]
    x = x.to(result_dtype(x))
    # A centre rounded to the working type is taken off exactly, or nearly; its small error is put right in float64.
    centre = x.mean(1, dtype=torch.float64).to(x.dtype)
    centred = x - centre[:, None]
    error = centred.mean(1, dtype=torch.float64)
    if x.is_cuda:
        centred = centred.double()  # a float32 product may be TF32 there, by a global switch that is the user's
    scatter = (centred.mT @ centred).sum(0, dtype=torch.float64) - n * error.mT @ error
    return n, centre.double(), error, (scatter + scatter.mT) / 2


def _centred(x: Tensor, mean: Tensor) -> Tensor:  # [N, d] working type, [d] float64
    centre = mean.to(x.dtype)
    return (x - centre) - (mean - centre.double()).to(x.dtype)
