"""Heads on the features of a frozen DINO (Caron et al. 2021), as in StyleGAN-T and in VAR's public trainer.

An image is resized to 224 pixels and seen by DINO's ViT-S/16 (`vision_transformer.py`). Five heads, one on the
embedded patches and one after every third block, read the 14 x 14 patch features, to each of which the class token is
added, as a row of 196: a convolution of width 1, a residual one of width 9 around the ring, and one to a logit. The
convolutions have a spectral norm of 1. The heads alone are trained; DINO's weights are in no checkpoint.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vqdm_train.discriminators.norm import NormKind, build_norm
from vqdm_train.discriminators.vision_transformer import VisionTransformer
from vqdm_train.losses.weights import DINO, fill, find_weights

__all__ = ["DinoDiscriminator"]

_KERNEL_SIZE = 9
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


class DinoDiscriminator(nn.Module):
    """Logits of all patches at all heads.

    The spectral norms follow the weights by one power iteration for each call in training mode, with vectors in
    buffers; in evaluation mode the vectors stay as they are.

    Args:
        norm: of the heads.
        weights: the file dino_deitsmall16_pretrain.pth; None is the one in torch's cache.

    Raises:
        FileNotFoundError: the file is not there; the sentence says what to do.
        ValueError: the file holds something else.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, norm: NormKind, weights: Path | None) -> None:
        super().__init__()
        file = find_weights(DINO, weights)
        with torch.device("meta"):
            self.trunk = VisionTransformer()
        fill(self.trunk, file)
        self.trunk.freeze()
        self.heads = nn.ModuleList(Head(self.trunk.width, norm) for _ in range(self.trunk.num_features))
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,  # [B, 3 or 1, H, W] in [-1, 1]
    ) -> Tensor:  # [B, 5, 196]
        with torch.autocast(images.device.type, enabled=False):
            resized = _resize(images.expand(-1, 3, -1, -1).to(self.mean.dtype), self.trunk.image_size)
        features = self.trunk(((resized + 1) / 2 - self.mean) / self.std)
        return torch.stack([head(x) for head, x in zip(self.heads, features, strict=True)], dim=1)


def _resize(images: Tensor, size: int) -> Tensor:
    """Means over areas where an image is larger than [size, size], bicubic elsewhere; as products with a matrix for
    each side, whose gradient on CUDA is the same in every run. That of torch's interpolation is not."""
    mode = "area" if min(images.shape[2:]) > size else "bicubic"
    rows, columns = (_resize_matrix(side, size, mode, images.device).to(images.dtype) for side in images.shape[2:])
    return rows @ images @ columns.T


@functools.cache
def _resize_matrix(side: int, size: int, mode: str, device: torch.device) -> Tensor:  # [size, side]
    return F.interpolate(torch.eye(side, device="cpu")[None, None], (size, side), mode=mode)[0, 0].to(device)


class Head(nn.Module):
    """Features [B, C, L] -> logits [B, L]."""

    def __init__(self, channels: int, norm: NormKind) -> None:
        super().__init__()
        self.first = _block(channels, 1, norm)
        self.second = _block(channels, _KERNEL_SIZE, norm)
        self.last = spectral_norm(nn.Conv1d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (x + self.second(x)) / 2**0.5
        return self.last(x).squeeze(1)


def _block(channels: int, kernel_size: int, norm: NormKind) -> nn.Sequential:
    conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(conv), build_norm(norm, channels), nn.LeakyReLU(0.2))
