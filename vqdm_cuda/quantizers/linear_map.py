"""A codebook behind a linear map: e = E W^T + b, the parametrisation of OptVQ, SimVQ and VQGAN-LC.

The map moves all codes at once, those that no feature selects too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.quantizers.layout import working_dtype

__all__ = ["make_identity", "mapped", "new_linear_map", "reset_linear_map"]


def new_linear_map(
    table_dim: int,
    code_dim: int,
    *,
    bias: bool = True,
) -> nn.Linear:
    """The map, its weight drawn from N(0, 1 / code_dim) as OptVQ and VQGAN-LC do; the bias is torch's own, as in
    SimVQ's code the weight is too (a standard deviation smaller by the root of 3)."""
    linear = nn.Linear(table_dim, code_dim, bias=bias)
    _draw_weight(linear)
    return linear


def reset_linear_map(linear: nn.Linear) -> None:
    """Draws the map anew, as `new_linear_map` does."""
    linear.reset_parameters()
    _draw_weight(linear)


@torch.no_grad()
def make_identity(linear: nn.Linear) -> None:
    """For a table of as many columns as the codes have."""
    nn.init.eye_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _draw_weight(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=linear.out_features**-0.5)


def mapped(
    table: Tensor,  # [K, table_dim]
    linear: nn.Linear,
) -> Tensor:  # [K, d]
    """The effective codebook in the working type, whatever the autocast; differentiable in all of its parts."""
    dtype = working_dtype(table.dtype)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    with torch.autocast(table.device.type, enabled=False):
        return F.linear(table.to(dtype), linear.weight.to(dtype), bias)
