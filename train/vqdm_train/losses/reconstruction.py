"""The tokenizer's loss on the pixels of its reconstruction; the quantizer adds its terms (Quantized.loss).

    reconstruction_loss = l1 * mean |x - y|  +  l2 * mean (x - y)^2

over all pixels and channels of images x and reconstructions y in [-1, 1]. A weight that was published for images in
[0, 1] is twice (l1) or four times (l2) the one that does the same here.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vqdm_train.losses.precision import widen

__all__ = ["LossConfig", "reconstruction_loss"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms of the reconstruction (VAR's public trainer has 0.2, 1 and 1); 0 leaves a term out."""

    l1: float = 0.2
    l2: float = 1.0
    perceptual: float = 0.0  # LPIPS
    perceptual_network: Literal["vgg", "alex"] = "vgg"
    perceptual_weights: str | None = None  # a file with the weights of that network; None is the one in torch's cache

    def __post_init__(self) -> None:
        weights = self.l1, self.l2, self.perceptual
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                "losses: expected l1, l2 and perceptual >= 0 and not all 0, "
                f"got {self.l1}, {self.l2} and {self.perceptual}"
            )
        if self.perceptual_weights == "":
            raise ValueError("losses: expected perceptual_weights to be a file or null, got an empty string")


def reconstruction_loss(
    images: Tensor,  # [B, C, H, W] in [-1, 1]
    reconstruction: Tensor,  # [B, C, H, W]; not clamped, so that the gradient survives outside [-1, 1]
    config: LossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss (scalar, float32 at least, differentiable) and its detached, weighted terms `l1` and `l2`."""
    difference = widen(reconstruction) - widen(images)
    l1 = config.l1 * difference.abs().mean()
    l2 = config.l2 * difference.square().mean()
    return l1 + l2, {"l1": l1.detach(), "l2": l2.detach()}


def batch_psnr(
    images: Tensor,  # [B, C, H, W] in [-1, 1]
    reconstruction: Tensor,  # [B, C, H, W]
) -> Tensor:
    """Mean over the batch of each image's PSNR in dB, on RGB, of the clamped reconstruction (peak to peak = 2)."""
    mse = (widen(reconstruction).clamp(-1, 1) - widen(images)).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / mse.clamp_min(1e-12))).mean()
