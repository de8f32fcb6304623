"""Entropies of the 2^d outcomes of d independent bits, given for each of N vectors by the logits a [N, d] of its bits.

    p_i(bits) = prod_j sigmoid(a_ij) or sigmoid(-a_ij), as bit j is set or not

    mean entropy         1/N sum_i sum_j H(sigmoid(a_ij))            H of a product is the sum of its factors' H
    entropy of the mean  H(1/N sum_i p_i)

p_i is the outer product of the laws of its first and of its last d/2 bits, so with these as the columns of B and A, of
2^(d/2) rows each, sum_i p_i = A B^T: one matrix product, a block of vectors after the other, and never N 2^d numbers.
Its gradient, for G that of the sum, with W = A * (G B) and q = 1 - sigmoid(a) of a bit of A, in closed form:

    da_ij = q_ij sum over the u with bit j set of W_ui - sigmoid(a_ij) sum over the others      and B's with G^T A

With a process group, vectors are those of all ranks, which may have different numbers of them, or none.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import all_reduce_sum

__all__ = ["entropy_of_mean", "mean_entropy"]

# Numbers of one block of A: what stays in a core's cache, or what fills a GPU.
_BLOCK_ON_CPU = 1 << 18
_BLOCK = 1 << 24


def mean_entropy(
    logits: Tensor,  # [N, d] float32 or float64
    group: ProcessGroup | None = None,
) -> Tensor:
    """Scalar, in nats; 0 without vectors. Every rank must call."""
    b = logits.abs().clamp_max(-math.log(_least(logits.dtype)))  # H is even
    odds = torch.exp(-b)  # of the bit's less likely value
    entropies = torch.log(1 + odds) + b * odds / (1 + odds)  # log1p takes many times as long
    return _mean(entropies.sum(), logits.shape[0], group)


def entropy_of_mean(
    logits: Tensor,  # [N, d] float32 or float64
    group: ProcessGroup | None = None,
) -> Tensor:
    """Scalar, in nats; 0 without vectors; differentiable once. Takes 2^d numbers. Every rank must call."""
    p = _mean(_LawSum.apply(logits), logits.shape[0], group)
    # Where no vector has any probability p log p is 0, and its gradient is multiplied by that of p, which is 0.
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum()


def _mean(total: Tensor, count: int, group: ProcessGroup | None) -> Tensor:
    if group is None:
        return total / max(count, 1)
    counts = all_reduce_sum(torch.tensor(count, device=total.device), group)
    return all_reduce_sum(total, group) / counts.clamp_min(1)


class _LawSum(torch.autograd.Function):
    """sum_i p_i [2^(d - d // 2), 2^(d // 2)], a row for each value of the last bits, a column for each of the first."""

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        low = logits.shape[1] // 2
        law = logits.new_zeros(2 ** (logits.shape[1] - low), 2**low)
        for block in _blocks(logits):
            law.addmm_(_laws(block[low:]), _laws(block[:low]).T)
        return law

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        low = logits.shape[1] // 2
        pulls = []
        # A caller's autocast, which may hold here too, would narrow the products.
        with torch.autocast(logits.device.type, enabled=False):
            for block in _blocks(logits):
                first, last = block[:low], block[low:]
                A, B = _laws(last), _laws(first)
                pulls.append(torch.cat([_pull(first, B * (grad.T @ A)), _pull(last, A * (grad @ B))]))
        return torch.cat(pulls, 1).T


def _blocks(
    logits: Tensor,  # [N, d]
) -> tuple[Tensor, ...]:  # [d, n] each, at least one
    d = logits.shape[1]
    numbers = _BLOCK_ON_CPU if logits.device.type == "cpu" else _BLOCK
    return logits.T.contiguous().split(max(1, numbers >> (d - d // 2)), 1)


def _laws(
    logits: Tensor,  # [b, n]
) -> Tensor:  # [2^b, n]
    """The probabilities of all values of b bits; the first is the lowest bit of the row's number."""
    b, n = logits.shape
    least = _least(logits.dtype)
    p = logits.new_ones(2**b, n)
    for j, (one, zero) in enumerate(zip(torch.sigmoid(logits), torch.sigmoid(-logits), strict=True)):
        p[2**j : 2 ** (j + 1)] = p[: 2**j] * one
        p[: 2**j] *= zero
        torch.threshold_(p[: 2 ** (j + 1)], least, 0.0)
    return p


def _least(dtype: torch.dtype) -> float:
    """Probabilities below it count as 0: products of two are then normal numbers, which are many times as fast."""
    return torch.finfo(dtype).tiny ** 0.5


def _pull(
    logits: Tensor,  # [b, n]
    W: Tensor,  # [2^b, n] probabilities times their gradients
) -> Tensor:  # [b, n] gradient of the logits
    b = logits.shape[0]
    numbers, places = torch.arange(2**b, device=W.device), torch.arange(b, device=W.device)
    bits = (numbers >> places[:, None] & 1).to(W.dtype)  # [b, 2^b]
    return torch.sigmoid(-logits) * (bits @ W) - torch.sigmoid(logits) * ((1 - bits) @ W)
