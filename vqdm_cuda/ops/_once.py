"""Gradients that can be taken, but not differentiated again.

torch's `once_differentiable` hands out a constant where the upstream gradient is one, so that a gradient penalty would
silently lose its own gradient. Here the second differentiation raises.
"""

import torch
from torch import Tensor


def only_once(
    function: str,
    gradient: Tensor,  # what a backward returns, computed without a graph
    *depends_on: Tensor,  # what it was computed from: upstream gradients and inputs
) -> Tensor:
    """The same gradient, tied to what it depends on by a node that raises RuntimeError when differentiated."""
    # Without a graph there is nothing to refuse, and AOTAutograd itself refuses the second derivative of compiled code.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gradient
    return _Once.apply(function, gradient, *depends_on)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: str, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        ctx.function = function
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(f"{ctx.function}: expected at most one backward pass, got a second derivative")
