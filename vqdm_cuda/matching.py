"""The squared Wasserstein distance between the Gaussians of two sets of rows, as one autograd node.

    W2^2(N(m1, S1), N(m2, S2)),  m and S the moments of z and of e, scaled by constants

The node knows the gradient in closed form: that of the distance in the moments, times that of the moments in the rows,
which is one matrix product. So a step on small codes is not spent in bookkeeping.

Shapes: N features, K codes, d dimensions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.ops._checks import check_has_kernels, result_dtype
from vqdm_cuda.ops._once import only_once
from vqdm_cuda.ops.gaussian_w2 import gaussian_w2_and_gradients
from vqdm_cuda.ops.moments import all_reduced, global_moments, moments_float64, moments_gradient

__all__ = ["Gaussians", "squared_w2_of_rows"]


class Gaussians(NamedTuple):
    """Two Gaussians in float64, and the constant factors by which they were made of the moments of two sets of rows."""

    mean1: Tensor  # [d]
    cov1: Tensor  # [d, d]
    mean2: Tensor
    cov2: Tensor
    mean_factor: Tensor | float = 1.0  # of both means
    cov1_factor: Tensor | float = 1.0
    cov2_factor: Tensor | float = 1.0


def squared_w2_of_rows(
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    prepare: Callable[[Gaussians], Gaussians],
    *,
    unbiased: bool,
    group: ProcessGroup | None,
    to_features: bool,
) -> Tensor:  # scalar, float64
    """W2^2 of the Gaussians that `prepare` makes of the moments of z (over the ranks of a group) and of e.

    Differentiable once in z and e. What `prepare` does beside its constant factors, as where it replaces the first
    Gaussian by a target, must not depend on rows that require a gradient. `to_features`, the same on all ranks, says
    that some rank's z may require one: then the backward pass of every rank takes part in a collective.
    """
    check_has_kernels("wasserstein_loss", z)
    z, e = z.to(result_dtype(z)), e.to(result_dtype(e))
    return _SquaredW2OfRows.apply(z, e, prepare, unbiased, group, to_features)


class _SquaredW2OfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        z: Tensor,
        e: Tensor,
        prepare: Callable[[Gaussians], Gaussians],
        unbiased: bool,
        group: ProcessGroup | None,
        to_features: bool,
    ) -> Tensor:
        lost = 1 if unbiased else 0
        count: Tensor | int
        divisor: Tensor | int
        if group is None:
            mean1, cov1 = moments_float64(z, unbiased=unbiased, group=None)
            count, divisor = max(z.shape[0], 1), max(z.shape[0] - lost, 0)
        else:
            mean1, cov1, count, divisor = global_moments(z, unbiased, group)
        mean2, cov2 = moments_float64(e, unbiased=unbiased, group=None)
        compared = prepare(Gaussians(mean1, cov1, mean2, cov2))
        w2, grad1, grad2 = gaussian_w2_and_gradients(*compared[:4], any(ctx.needs_input_grad))
        ctx.save_for_backward(z, e, mean1, mean2, compared.mean1 - compared.mean2, grad1, grad2)
        ctx.rows, ctx.codes = (count, divisor), (e.shape[0], max(e.shape[0] - lost, 0))
        ctx.factors, ctx.group, ctx.to_features = compared[4:], group, to_features
        return w2

    @staticmethod
    def backward(ctx, grad: Tensor):
        z, e, mean1, mean2, difference, grad1, grad2 = ctx.saved_tensors
        mean_factor, cov1_factor, cov2_factor = ctx.factors
        grad_z = grad_e = None
        with torch.no_grad():
            slope = (2 * mean_factor * grad) * difference  # in mean1; in mean2 its negative
            if ctx.needs_input_grad[0] or (ctx.group is not None and ctx.to_features):
                count, divisor = ctx.rows
                of_sum, of_scatter = slope / count, (cov1_factor * grad / divisor) * grad1
                if ctx.group is not None:
                    # Whether this rank's z asks for it or not: another's may, and would wait.
                    of_sum, of_scatter = all_reduced(of_sum, of_scatter, ctx.group)
                if ctx.needs_input_grad[0]:
                    grad_z = moments_gradient(z, mean1, of_sum, of_scatter)
            if ctx.needs_input_grad[1]:
                count, divisor = ctx.codes
                of_scatter = (cov2_factor * grad / divisor) * grad2
                grad_e = moments_gradient(e, mean2, slope / -count, of_scatter)
        return (
            None if grad_z is None else only_once("wasserstein_loss", grad_z, grad, z, e),
            None if grad_e is None else only_once("wasserstein_loss", grad_e, grad, z, e),
            None,
            None,
            None,
            None,
        )
