"""What the ranks of a process group exchange.

Sums are differentiable:

    forward: y = sum_r x_r on every rank          backward: dx_r = sum_s dy_s on every rank

This is the gradient of the sum of all ranks' losses. Where each rank computes the same loss from global statistics, it
is (number of ranks) times the one-process gradient, which is what DistributedDataParallel's mean over ranks undoes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = ["all_gather", "all_reduce_sum", "gather_rows", "shared_seed"]


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
        total = x.detach().to(_device_of_transport(x, group), memory_format=torch.contiguous_format, copy=True)
        dist.all_reduce(total, group=group)
        return total.to(x.device)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceSum.apply(grad, ctx.group), None


@torch.no_grad()
def all_gather(
    x: Tensor,  # [...] of one shape and type on all ranks
    group: ProcessGroup,
) -> Tensor:  # [ranks, ...]
    """Every rank's x, in the order of the ranks, equal on all of them. Every rank must call; not differentiable."""
    own = x.detach().to(_device_of_transport(x, group)).contiguous()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    return torch.stack(parts).to(x.device)


@torch.no_grad()
def gather_rows(
    rows: Tensor,  # [N, d] of this rank; N may differ and be zero
    group: ProcessGroup | None,  # None: this process alone
) -> Tensor:  # [sum of N, d]
    """The rows of all ranks, in the order of the ranks, equal on all of them. Every rank must call."""
    rows = rows.detach()
    if group is None:
        return rows
    counts = all_gather(torch.tensor(rows.shape[0], device="cpu"), group).tolist()
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: rows.shape[0]] = rows
    parts = all_gather(padded, group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def shared_seed(group: ProcessGroup | None) -> int:
    """A seed from torch's default generator on the CPU, of the first rank for all. Every rank must call, and draws."""
    seed = torch.randint(2**63 - 1, (), device="cpu")
    return int(seed if group is None else all_gather(seed, group)[0])


def _device_of_transport(x: Tensor, group: ProcessGroup | None) -> torch.device:
    """NCCL moves CUDA tensors only; counts and the like may live on the CPU."""
    return torch.device("cuda") if dist.get_backend(group) == "nccl" else x.device
