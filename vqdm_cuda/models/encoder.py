"""Encoder: images to latents, halving the resolution between levels (VQGAN, VAR).

patches to channels -> conv_in -> per level: residual blocks (attention at the lowest), downsample
                    -> middle -> norm, silu, conv_out -> quant_conv -> patches of latents to channels
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.models.blocks import AttentionBlock, Downsample, GroupNorm, MiddleBlocks, ResidualBlock
from vqdm_cuda.models.network import EncoderNetwork
from vqdm_cuda.models.options import NetworkOptions

__all__ = ["Encoder"]


class _Level(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, options: NetworkOptions, *, lowest: bool) -> None:
        super().__init__()
        groups = options.norm_groups
        self.block = nn.ModuleList(
            ResidualBlock(
                in_channels if j == 0 else out_channels, out_channels, dropout=options.dropout, norm_groups=groups
            )
            for j in range(options.num_res_blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels, norm_groups=groups)
            for _ in range(options.num_res_blocks if lowest and options.attention else 0)
        )
        self.downsample = nn.Identity() if lowest else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return self.downsample(x)


class Encoder(EncoderNetwork):
    """Images [B, in_channels, H, W] to latents [B, latent_channels, H/factor, W/factor].

    factor is patch_size 2^(levels - 1) latent_patch_size, with one level per entry of channel_multipliers. Options as
    in `NetworkOptions`; the defaults are VAR's released tokenizer.
    """

    kind: ClassVar[str] = "encoder"

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
        latent_patch_size: int = 1,
        z_channels: int | None = None,
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
            latent_patch_size=latent_patch_size,
            z_channels=z_channels,
        )
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, self.options.factor
        channels = self.options.level_channels
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(n_in, n_out, self.options, lowest=i == len(channels) - 1)
            for i, (n_in, n_out) in enumerate(zip([base_channels, *channels[:-1]], channels, strict=True))
        )
        self.mid = MiddleBlocks(channels[-1], attention=mid_attention, dropout=dropout, norm_groups=norm_groups)
        self.norm_out = GroupNorm(channels[-1], norm_groups)
        near, far = self.options.quant_conv_channels
        self.conv_out = nn.Conv2d(channels[-1], near, 3, padding=1)
        self.quant_conv = nn.Conv2d(near, far, latent_kernel_size, padding=latent_kernel_size // 2)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind} | self.options.plain()

    def forward(
        self,
        images: Tensor,  # [B, in_channels, H, W]
    ) -> Tensor:
        """Latents [B, latent_channels, H/factor, W/factor]."""
        x = self.conv_in(F.pixel_unshuffle(images, self.options.patch_size))
        for level in self.down:
            x = level(x)
        z = self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))
        return F.pixel_unshuffle(z, self.options.latent_patch_size)
