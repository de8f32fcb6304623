"""Squared quadratic Wasserstein distance between Gaussians, by its textbook formula.

W2^2 = ||m1 - m2||^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2
"""

import functools

import torch
from torch import Tensor

from vqdm_cuda.reference.sqrtm import sqrtm


def gaussian_w2(
    mean1: Tensor,  # [..., d]
    cov1: Tensor,  # [..., d, d]
    mean2: Tensor,  # [..., d]
    cov2: Tensor,  # [..., d, d]
) -> Tensor:  # [...]
    """The distance in float64, rounded once. Where the covariances nearly agree, half of the digits cancel."""
    out_dtype = functools.reduce(torch.promote_types, (t.dtype for t in (mean1, cov1, mean2, cov2)), torch.float32)
    root1, S2 = sqrtm(cov1.double()), (cov2.double() + cov2.double().mT) / 2
    traces = (root1 @ root1 + S2 - 2 * sqrtm(root1 @ S2 @ root1)).diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mean1.double() - mean2.double()).square().sum(-1) + traces).to(out_dtype)
