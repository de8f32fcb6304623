"""Mean and covariance of the rows of a matrix, by definition.

    mean = (1/N) sum_i x_i          cov = (1/N) sum_i (x_i - mean) (x_i - mean)^T        (N - 1 where unbiased)

For several processes: give the rows of all of them.
"""

import torch
from torch import Tensor


def moments(
    x: Tensor,  # [N, d]
    *,
    unbiased: bool = False,
) -> tuple[Tensor, Tensor]:  # mean [d], cov [d, d]
    """Mean and covariance in float64, rounded once."""
    x64, out_dtype = x.double(), torch.promote_types(x.dtype, torch.float32)
    mean = x64.mean(0)
    cov = (x64 - mean).mT @ (x64 - mean) / max(len(x) - unbiased, 0)
    return mean.to(out_dtype), cov.to(out_dtype)
