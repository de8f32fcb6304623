"""Decoder: latents to images, doubling the resolution between levels; the encoder's mirror image (VQGAN, VAR).

channels to patches of latents -> post_quant_conv -> conv_in -> middle
    -> per level, lowest first: residual blocks (attention at the lowest), upsample
    -> norm, silu, conv_out -> channels to patches

With `spatial_norm` it is MoVQ's (Zheng et al. 2022), where every norm sees the quantized latents.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.models.blocks import AttentionBlock, MiddleBlocks, ResidualBlock, Upsample, normalization
from vqdm_cuda.models.network import DecoderNetwork
from vqdm_cuda.models.options import NetworkOptions

__all__ = ["Decoder"]


class _Level(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: NetworkOptions,
        *,
        lowest: bool,
        highest: bool,
        spatial_channels: int | None,
    ) -> None:
        super().__init__()
        norm: dict[str, Any] = {"norm_groups": options.norm_groups, "spatial_channels": spatial_channels}
        # One block more than the encoder's level: it follows the upsampling.
        num_blocks = options.num_res_blocks + 1
        self.block = nn.ModuleList(
            ResidualBlock(in_channels if j == 0 else out_channels, out_channels, dropout=options.dropout, **norm)
            for j in range(num_blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels, **norm) for _ in range(num_blocks if lowest and options.attention else 0)
        )
        self.upsample = nn.Identity() if highest else Upsample(out_channels)

    def forward(self, x: Tensor, z_q: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x, z_q)
            if self.attn:
                x = self.attn[j](x, z_q)
        return self.upsample(x)


class Decoder(DecoderNetwork):
    """Latents [B, latent_channels, h, w] to images [B, in_channels, factor h, factor w], not clamped.

    Options as in `NetworkOptions` and equal to the encoder's; `in_channels` is the number of channels of the images.
    `spatial_norm` makes every norm a SpatialNorm of the latents.
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
        latent_patch_size: int = 1,
        z_channels: int | None = None,
        spatial_norm: bool = False,
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
        self.spatial_norm = spatial_norm
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, self.options.factor
        channels = self.options.level_channels
        lowest = len(channels) - 1
        spatial_channels = latent_channels if spatial_norm else None
        near, far = self.options.quant_conv_channels
        self.post_quant_conv = nn.Conv2d(far, near, latent_kernel_size, padding=latent_kernel_size // 2)
        self.conv_in = nn.Conv2d(near, channels[-1], 3, padding=1)
        self.mid = MiddleBlocks(
            channels[-1],
            attention=mid_attention,
            dropout=dropout,
            norm_groups=norm_groups,
            spatial_channels=spatial_channels,
        )
        # Numbered by resolution, as the encoder's levels: up[0] makes the images.
        self.up = nn.ModuleList(
            _Level(
                channels[min(i + 1, lowest)],
                channels[i],
                self.options,
                lowest=i == lowest,
                highest=i == 0,
                spatial_channels=spatial_channels,
            )
            for i in range(len(channels))
        )
        self.norm_out = normalization(channels[0], norm_groups, spatial_channels)
        self.conv_out = nn.Conv2d(channels[0], in_channels * patch_size**2, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv_out.get_parameter("weight")

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind} | self.options.plain() | {"spatial_norm": self.spatial_norm}

    def forward(
        self,
        z_q: Tensor,  # [B, latent_channels, h, w]
    ) -> Tensor:
        """Images [B, in_channels, factor h, factor w]."""
        z = F.pixel_shuffle(z_q, self.options.latent_patch_size)
        x = self.mid(self.conv_in(self.post_quant_conv(z)), z_q)
        for level in reversed(self.up):
            x = level(x, z_q)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x, z_q))), self.options.patch_size)
