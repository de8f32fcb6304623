"""phi: the convolutions that VAR applies to upsampled codes, shared between scales.

    phi_t(x) = (1 - q) x + q conv_s(t)(x)

s(t) is the convolution whose place is nearest to t/(T - 1), the places being spread evenly over [0, 1]: VAR leaves a
margin of 1/12 at both ends for four of them and 1/(2 n) for another number n.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Phi", "places_of_scales"]


def places_of_scales(num_scales: int, num_phi: int) -> list[int]:
    """s(t) for each of the scales."""
    margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    places = np.linspace(margin, 1 - margin, num_phi)
    return [int(np.argmin(np.abs(places - t / max(num_scales - 1, 1)))) for t in range(num_scales)]


class Phi(nn.ModuleList):
    """phi of all scales; options as in `MultiScaleQuantizer`, which they belong to."""

    def __init__(self, code_dim: int, num_scales: int, *, kernel_size: int, ratio: float, num_phi: int | None) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"MultiScaleQuantizer: expected phi_kernel_size to be odd and positive, got {kernel_size}")
        if not 0 <= ratio <= 1:
            raise ValueError(f"MultiScaleQuantizer: expected phi_ratio from 0 to 1, got {ratio}")
        if num_phi is not None and num_phi < 0:
            raise ValueError(f"MultiScaleQuantizer: expected num_phi of at least 0 or None, got {num_phi}")
        none = num_phi is None or ratio == 0
        of_scale = [] if none else places_of_scales(num_scales, min(num_phi or num_scales, num_scales))
        num_convolutions = max(of_scale, default=-1) + 1
        if len(set(of_scale)) != num_convolutions:
            raise ValueError(
                f"MultiScaleQuantizer: expected num_phi to leave no phi without one of the {num_scales} scales, where "
                f"it would never be trained, got {num_phi}, which would place them as {of_scale}"
            )
        super().__init__(
            nn.Conv2d(code_dim, code_dim, kernel_size, padding=kernel_size // 2) for _ in range(num_convolutions)
        )
        self.of_scale = of_scale
        self.ratio = ratio
        self.padding = kernel_size // 2

    def forward(
        self,
        x: Tensor,  # [B, h, w, d]
        t: int,
    ) -> Tensor:
        """phi_t(x) [B, h, w, d] in x's type, whatever that of the parameters."""
        if not self.of_scale:
            return x
        weight, bias = (parameter.to(x.dtype) for parameter in self[self.of_scale[t]].parameters())
        convolved = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=self.padding).permute(0, 2, 3, 1)
        return torch.add((1 - self.ratio) * x, convolved, alpha=self.ratio)
