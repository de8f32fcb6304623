"""What an image tokenizer asks of its two networks.

An encoder or decoder of your own is a subclass; `from_pretrained` builds none but this package's.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = ["DecoderNetwork", "EncoderNetwork"]


class _Network(nn.Module, ABC):
    kind: ClassVar[str]  # the word for this class in a saved configuration
    in_channels: int  # of the images
    latent_channels: int
    factor: int  # how many times smaller the latents are than the images, along each side

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data, with the word `kind`."""


class EncoderNetwork(_Network):
    """Images to latents."""

    @abstractmethod
    def forward(
        self,
        images: Tensor,  # [B, in_channels, H, W] in [-1, 1]
    ) -> Tensor:
        """Latents [B, latent_channels, H/factor, W/factor]."""


class DecoderNetwork(_Network):
    """Latents to images."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight of the last layer, whose gradients balance an adversarial loss (VQGAN, Esser et al. 2021)."""

    @abstractmethod
    def forward(
        self,
        z_q: Tensor,  # [B, latent_channels, h, w]
    ) -> Tensor:
        """Images [B, in_channels, factor h, factor w], not clamped."""
