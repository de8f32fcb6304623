"""Losses are computed in float32 whatever the autocast, and in float64 where the networks are."""

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is where it has more digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
