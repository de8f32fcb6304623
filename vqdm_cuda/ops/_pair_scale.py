"""One over the unit in which costs of pairs are measured: their standard deviation, without the [N, K] matrix.

With y = x - mean e, P = ||y||^2, w = e - mean e, Q = ||w||^2 and m = mean y, the squared distance of a pair is
P + Q - 2 y . w, of independent x and e, so that over all N K pairs (checked in float64)

    mean = E P + E Q        Var = Var P + Var Q + 4 tr((cov y + m m^T) cov w) - 4 m . cov(w, Q)

and all that is needed are the moments of the rows [y, P] and [w, Q] (d^2 numbers). Of the distance itself, shifted by
the root of that mean, the sums of first and second powers are taken in one pass over the pairs: no digits cancel.
"""

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import all_reduce_sum
from vqdm_cuda.ops.moments import moments_float64

__all__ = ["pair_scale"]

_GUARD = 1e-6  # OptVQ's, added to the standard deviation


def pair_scale(
    z: Tensor,  # [H, N, d]
    e: Tensor,  # [H, K, d]
    rows: Tensor,  # [] float64: N, of all ranks of the group
    *,
    squared: bool,
    normalize: str | None,
    group: ProcessGroup | None,  # the ranks whose rows of z count together; their e is the same
) -> Tensor:  # [H] float64
    """1 / (std + 1e-6) of the pairs' costs (`normalize="std"`, unbiased), 1 / sqrt(d) ("dim"), or 1 (None)."""
    if normalize == "std":
        return 1 / (_std(z, e, rows, squared, group) + _GUARD)
    return z.new_full(z.shape[:1], 1 / math.sqrt(z.shape[2]) if normalize == "dim" else 1.0, dtype=torch.float64)


def _std(z: Tensor, e: Tensor, rows: Tensor, squared: bool, group: ProcessGroup | None) -> Tensor:
    pairs = rows * e.shape[1]
    heads = [(_squared_variance if squared else _root_mean)(z[h], e[h], group) for h in range(z.shape[0])]
    of_heads = torch.stack(heads) if heads else z.new_zeros(0, dtype=torch.float64)
    if squared:
        variance = of_heads
    else:
        sums = torch.ops.vqdm.pair_sums(z, e, of_heads)
        if group is not None:
            sums = all_reduce_sum(sums, group)
        first, second = (sums / pairs).unbind(1)
        variance = second - first * first
    unbiased = variance.clamp_min(0) * (pairs / (pairs - 1))
    return torch.where(pairs > 1, unbiased, 0.0).sqrt()


def _root_mean(
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    group: ProcessGroup | None,
) -> Tensor:
    """The root of the mean of ||z_i - e_k||^2 over all pairs; [] float64."""
    y, w = _centred(z, e)
    mean_P = moments_float64((y * y).sum(1, keepdim=True), unbiased=False, group=group)[0]
    mean_Q = moments_float64((w * w).sum(1, keepdim=True), unbiased=False, group=None)[0]
    return (mean_P + mean_Q)[0].sqrt()


def _squared_variance(z: Tensor, e: Tensor, group: ProcessGroup | None) -> Tensor:
    """Population variance of ||z_i - e_k||^2 over all pairs; [] float64."""
    d = e.shape[1]
    (mean_y, cov_y), (_, cov_w) = (
        moments_float64(torch.cat([x, (x * x).sum(1, keepdim=True)], 1), unbiased=False, group=of)
        for x, of in zip(_centred(z, e), (group, None), strict=True)
    )
    m = mean_y[:d]
    second = cov_y[:d, :d] + torch.outer(m, m)
    cross = (second * cov_w[:d, :d]).sum() - m @ cov_w[:d, d]
    return cov_y[d, d] + cov_w[d, d] + 4 * cross


def _centred(z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:  # [N, d], [K, d] -> the same in float64, less mean e
    z, e = z.double(), e.double()
    centre = moments_float64(e, unbiased=False, group=None)[0]
    return z - centre, e - centre


@torch.library.register_fake("vqdm::pair_sums")
def _(x: Tensor, y: Tensor, shift: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], 2, dtype=torch.float64)
