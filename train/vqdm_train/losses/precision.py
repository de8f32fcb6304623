"""Losses are sums over many values: what autocast made narrow is widened first."""

import torch
from torch import Tensor

__all__ = ["widen"]


def widen(x: Tensor) -> Tensor:
    """float32, or what is wider already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
