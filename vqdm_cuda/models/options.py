"""The options that encoder and decoder share, checked once and written to a saved configuration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["NetworkOptions"]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Shape of a convolutional encoder or decoder; the defaults are VAR's released tokenizer.

    Level i works at a resolution patch_size * 2^i times smaller than the images' with base_channels *
    channel_multipliers[i] channels.
    """

    in_channels: int = 3
    base_channels: int = 160
    channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 32
    attention: bool = True  # after each residual block of the lowest level
    mid_attention: bool = True  # between the two middle blocks
    dropout: float = 0.0
    norm_groups: int = 32
    latent_kernel_size: int = 3  # of the convolution between network and quantizer
    patch_size: int = 1  # side of the squares of pixels that become channels (pixel unshuffle) before the first level
    latent_patch_size: int = 1  # the same of the squares of latents, after the convolution to the quantizer
    z_channels: int | None = None  # on the network's side of that convolution; None is as many as on the quantizer's

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        for name in (
            "in_channels",
            "base_channels",
            "num_res_blocks",
            "latent_channels",
            "norm_groups",
            "patch_size",
            "latent_patch_size",
            "z_channels",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"NetworkOptions: expected {name} of at least 1, got {value}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"NetworkOptions: expected positive channel_multipliers, got {self.channel_multipliers}")
        if self.latent_kernel_size < 1 or self.latent_kernel_size % 2 == 0:
            raise ValueError(
                f"NetworkOptions: expected latent_kernel_size to be odd and positive, got {self.latent_kernel_size}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"NetworkOptions: expected dropout from 0 to below 1, got {self.dropout}")
        if self.latent_channels % self.latent_patch_size**2:
            raise ValueError(
                f"NetworkOptions: expected latent_channels to be a multiple of latent_patch_size^2, "
                f"{self.latent_patch_size**2}, got {self.latent_channels}"
            )

    @property
    def level_channels(self) -> list[int]:
        """Channels of each level, from the highest resolution down to the latents'."""
        return [self.base_channels * m for m in self.channel_multipliers]

    @property
    def quant_conv_channels(self) -> tuple[int, int]:
        """Channels of the convolution between network and quantizer, on either side of it."""
        quantizer = self.latent_channels // self.latent_patch_size**2
        return self.z_channels or quantizer, quantizer

    @property
    def factor(self) -> int:
        """How many times smaller the latents are than the images, along each side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1) * self.latent_patch_size

    def plain(self) -> dict[str, Any]:
        """As plain data for a saved configuration."""
        return asdict(self) | {"channel_multipliers": list(self.channel_multipliers)}
