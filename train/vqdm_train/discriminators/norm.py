"""Normalisation inside a discriminator: by groups of channels, or by the statistics of a batch.

    y = (x - mean) / sqrt(var + eps) * weight + bias        mean, var [C] over images and positions, var biased

There are no running statistics. A discriminator is never evaluated, and its networks see images and reconstructions in
turn, each normalised by its own batch. So the norm does the same in training and in evaluation mode, and nothing in it
changes but by the optimizer.
"""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_train.losses.precision import widen

__all__ = ["BatchNorm", "NormKind", "build_norm"]

NormKind = Literal["group", "sync_batch", "batch"]


def build_norm(kind: NormKind, channels: int) -> nn.Module:
    """For x [B, channels, ...]; groups of at least 4 channels, since one alone would lose its mean, and 32 at most."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, max(1, channels // 4), channels), channels)
    return BatchNorm(channels, over_ranks=kind == "sync_batch")


class BatchNorm(nn.Module):
    """Batch normalisation of x [B, channels, ...], on any device and backend.

    With over_ranks, the statistics are those of all processes' images together, whatever each one's number: the result
    and, once DistributedDataParallel has taken the mean over processes, the gradients are those of one process.
    """

    def __init__(self, channels: int, *, over_ranks: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.over_ranks = over_ranks
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not (self.over_ranks and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        shape = (-1, *[1] * (x.dim() - 2))
        dims = [0, *range(2, x.dim())]
        wide = widen(x)  # sums over a batch in bfloat16 are none
        # Two sums, of x and of squares about the mean: one of x and x^2 cancels where the mean is large.
        count = wide.new_full((1,), wide.numel() / wide.shape[1])
        *total, count = _all_reduce(torch.cat([wide.sum(dims), count])).split([wide.shape[1], 1])
        centred = wide - (total[0] / count).view(shape)
        var = _all_reduce(centred.square().sum(dims)) / count
        scale = self.weight.to(wide.dtype) * (var + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.to(wide.dtype).view(shape)).to(x.dtype)


def _all_reduce(x: Tensor) -> Tensor:
    return _AllReduceSum.apply(x)


class _AllReduceSum(torch.autograd.Function):
    """y = sum_r x_r on every process; dx_r = sum_s dy_s, the gradient of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduceSum.apply(grad)
