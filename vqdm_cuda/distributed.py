"""Sums over the ranks of a process group, differentiable.

    forward: y = sum_r x_r on every rank          backward: dx_r = sum_s dy_s on every rank

This is the gradient of the sum of all ranks' losses. Where each rank computes the same loss from global statistics, it
is (number of ranks) times the one-process gradient, which is what DistributedDataParallel's mean over ranks undoes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = ["all_reduce_sum"]


def all_reduce_sum(
    x: Tensor,  # [...] of one shape and type on all ranks
    group: ProcessGroup | None = None,  # None: all processes
) -> Tensor:  # [...]
    """The sum of x over the ranks of the group. Every rank must call; x itself is not changed."""
    return _AllReduceSum.apply(x, group)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        # NCCL moves CUDA tensors only; counts and the like may live on the CPU.
        device = torch.device("cuda") if dist.get_backend(group) == "nccl" else x.device
        total = x.detach().to(device, memory_format=torch.contiguous_format, copy=True)
        dist.all_reduce(total, group=group)
        return total.to(x.device)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceSum.apply(grad, ctx.group), None
