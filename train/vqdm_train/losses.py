"""The tokenizer's own loss on its reconstruction; the quantizer adds its terms (Quantized.loss).

    reconstruction_loss = l1_weight * mean |x - y|  +  l2_weight * mean (x - y)^2

over all pixels and channels of images x and reconstructions y in [-1, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LossConfig", "reconstruction_loss"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the reconstruction terms (VAR's public trainer has 0.2 and 1)."""

    l1_weight: float = 0.2
    l2_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.l1_weight < 0 or self.l2_weight < 0 or self.l1_weight + self.l2_weight == 0:
            raise ValueError(
                f"loss: expected l1_weight and l2_weight >= 0 and not both 0, got {self.l1_weight} and {self.l2_weight}"
            )


def reconstruction_loss(
    images: Tensor,  # [B, C, H, W] in [-1, 1]
    reconstruction: Tensor,  # [B, C, H, W]; not clamped, so that the gradient survives outside [-1, 1]
    config: LossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss (float32 scalar, differentiable) and its detached, weighted terms `l1` and `l2`."""
    difference = reconstruction.float() - images.float()
    l1 = config.l1_weight * difference.abs().mean()
    l2 = config.l2_weight * difference.square().mean()
    return l1 + l2, {"l1": l1.detach(), "l2": l2.detach()}


def batch_psnr(
    images: Tensor,  # [B, C, H, W] in [-1, 1]
    reconstruction: Tensor,  # [B, C, H, W]
) -> Tensor:
    """Mean over the batch of each image's PSNR in dB, on RGB, of the clamped reconstruction (peak to peak = 2)."""
    mse = (reconstruction.float().clamp(-1, 1) - images.float()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / mse.clamp_min(1e-12))).mean()
