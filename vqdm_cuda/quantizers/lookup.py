"""Lookup of codes whose gradient is summed deterministically.

    value      z_q[i] = e[indices[i]]
    gradient   de[k]  = sum of dz_q[i] over the i with indices[i] = k      (code_sums: the same bits on every run)

Indexing a parameter directly would add gradients in the order in which threads arrive on some backends.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from vqdm_cuda.ops.code_sums import code_sums

__all__ = ["lookup"]


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(e: Tensor, indices: Tensor) -> Tensor:
        return e.index_select(0, indices)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        e, indices = inputs
        ctx.save_for_backward(indices)
        ctx.num_codes = e.shape[0]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        sums, _ = code_sums(grad, indices, ctx.num_codes)
        return sums.to(grad.dtype), None


def lookup(
    e: Tensor,  # [K, d]
    indices: Tensor,  # [N] int64
) -> Tensor:
    """The codes [N, d] of the indices; differentiable in e."""
    return _Lookup.apply(e, indices)
