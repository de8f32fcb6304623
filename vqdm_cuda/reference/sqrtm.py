"""Square root of symmetric positive semi-definite matrices, by eigendecomposition.

a = V diag(l) V^T        sqrtm(a) = V diag(sqrt(max(l, 0))) V^T
"""

import torch
from torch import Tensor


def sqrtm(
    a: Tensor,  # [..., d, d]
) -> Tensor:  # [..., d, d]
    """The square root in float64, rounded once. Autograd through it needs distinct, positive eigenvalues."""
    values, V = torch.linalg.eigh((a.double() + a.double().mT) / 2)
    root = (V * values.clamp_min(0).sqrt()[..., None, :]) @ V.mT
    return root.to(torch.promote_types(a.dtype, torch.float32))
