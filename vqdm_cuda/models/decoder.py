"""Decoder: latents to images, doubling the resolution between levels; the encoder's mirror image (VQGAN, VAR).

post_quant_conv -> conv_in -> middle
                -> per level, lowest first: residual blocks (attention at the lowest), upsample
                -> norm, silu, conv_out -> channels to patches
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.models.blocks import AttentionBlock, MiddleBlocks, ResidualBlock, Upsample, group_norm
from vqdm_cuda.models.network import DecoderNetwork
from vqdm_cuda.models.options import NetworkOptions

__all__ = ["Decoder"]


class _Level(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, options: NetworkOptions, *, lowest: bool, highest: bool
    ) -> None:
        super().__init__()
        groups = options.norm_groups
        # One block more than the encoder's level: it follows the upsampling.
        num_blocks = options.num_res_blocks + 1
        self.block = nn.ModuleList(
            ResidualBlock(
                in_channels if j == 0 else out_channels, out_channels, dropout=options.dropout, norm_groups=groups
            )
            for j in range(num_blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels, norm_groups=groups)
            for _ in range(num_blocks if lowest and options.attention else 0)
        )
        self.upsample = nn.Identity() if highest else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return self.upsample(x)


class Decoder(DecoderNetwork):
    """Latents [B, latent_channels, h, w] to images [B, in_channels, factor h, factor w], not clamped.

    Options as in `NetworkOptions` and equal to the encoder's; `in_channels` is the number of channels of the images.
    """

    kind: ClassVar[str] = "decoder"

    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 160,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 32,
        attention: bool = True,
        mid_attention: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        latent_kernel_size: int = 3,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.options = NetworkOptions(
            in_channels=in_channels,
            base_channels=base_channels,
            channel_multipliers=channel_multipliers,
            num_res_blocks=num_res_blocks,
            latent_channels=latent_channels,
            attention=attention,
            mid_attention=mid_attention,
            dropout=dropout,
            norm_groups=norm_groups,
            latent_kernel_size=latent_kernel_size,
            patch_size=patch_size,
        )
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, self.options.factor
        channels = self.options.level_channels
        lowest = len(channels) - 1
        self.post_quant_conv = nn.Conv2d(
            latent_channels, latent_channels, latent_kernel_size, padding=latent_kernel_size // 2
        )
        self.conv_in = nn.Conv2d(latent_channels, channels[-1], 3, padding=1)
        self.mid = MiddleBlocks(channels[-1], attention=mid_attention, dropout=dropout, norm_groups=norm_groups)
        # Numbered by resolution, as the encoder's levels: up[0] makes the images.
        self.up = nn.ModuleList(
            _Level(channels[min(i + 1, lowest)], channels[i], self.options, lowest=i == lowest, highest=i == 0)
            for i in range(len(channels))
        )
        self.norm_out = group_norm(channels[0], norm_groups)
        self.conv_out = nn.Conv2d(channels[0], in_channels * patch_size**2, 3, padding=1)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind} | self.options.plain()

    def forward(
        self,
        z_q: Tensor,  # [B, latent_channels, h, w]
    ) -> Tensor:
        """Images [B, in_channels, factor h, factor w]."""
        x = self.mid(self.conv_in(self.post_quant_conv(z_q)))
        for level in reversed(self.up):
            x = level(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.options.patch_size)
