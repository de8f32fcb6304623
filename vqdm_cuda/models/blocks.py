"""Blocks of the convolutional encoder and decoder of VQGAN (Esser et al. 2021) in the form of VAR (Tian et al. 2024).

    ResidualBlock   x + conv(dropout(silu(norm(conv(silu(norm(x)))))))     1x1 convolution on x where channels change
    AttentionBlock  x + proj(softmax(q k^T C^-1/2) v)                      q, k, v: thirds of one 1x1 convolution
    Downsample      3x3 convolution of stride 2, padded by one at the right and bottom only
    Upsample        nearest neighbour x2, then a 3x3 convolution

norm is a GroupNorm or, in the decoder of MoVQ (Zheng et al. 2022), a SpatialNorm, which takes the quantized latents z_q
as a second input; blocks hand z_q to their norms.

All keep the memory format of their input, channels last included. Parameter names are those of VQGAN and VAR.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.models.checkpointing import CheckpointedBlock

__all__ = [
    "AttentionBlock",
    "Downsample",
    "GroupNorm",
    "MiddleBlocks",
    "ResidualBlock",
    "SpatialNorm",
    "Upsample",
    "normalization",
]


class GroupNorm(nn.GroupNorm):
    """Affine group normalisation with VQGAN's eps of 1e-6; the latents change nothing."""

    def __init__(self, channels: int, num_groups: int) -> None:
        if num_groups < 1 or channels % num_groups:
            raise ValueError(f"GroupNorm: expected norm_groups to divide the {channels} channels, got {num_groups}")
        super().__init__(num_groups, channels, eps=1e-6)

    def forward(
        self,
        x: Tensor,  # [B, C, h, w]
        z_q: Tensor | None = None,
    ) -> Tensor:
        """[B, C, h, w]"""
        return super().forward(x)


class SpatialNorm(GroupNorm):
    """GroupNorm(x) conv_y(z_q) + conv_b(z_q), with 1x1 convolutions and z_q enlarged to x's size by nearest neighbour.

    The convolutions run before the enlargement: on each position alone they give the same, for less.
    """

    def __init__(self, channels: int, num_groups: int, spatial_channels: int) -> None:
        super().__init__(channels, num_groups)
        self.conv_y = nn.Conv2d(spatial_channels, channels, 1)
        self.conv_b = nn.Conv2d(spatial_channels, channels, 1)

    def forward(
        self,
        x: Tensor,  # [B, C, h, w]
        z_q: Tensor | None = None,  # [B, spatial_channels, h / n, w / n]
    ) -> Tensor:
        """[B, C, h, w]"""
        assert z_q is not None
        size = x.shape[2:]
        scale = F.interpolate(self.conv_y(z_q), size=size, mode="nearest")
        shift = F.interpolate(self.conv_b(z_q), size=size, mode="nearest")
        return super().forward(x) * scale + shift


def normalization(channels: int, norm_groups: int, spatial_channels: int | None = None) -> GroupNorm:
    """The norm of a block: of latents with `spatial_channels` channels a SpatialNorm, otherwise a GroupNorm.

    Raises:
        ValueError: channels is not a multiple of norm_groups.
    """
    if spatial_channels is None:
        return GroupNorm(channels, norm_groups)
    return SpatialNorm(channels, norm_groups, spatial_channels)


class ResidualBlock(CheckpointedBlock):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dropout: float,
        norm_groups: int,
        spatial_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = normalization(in_channels, norm_groups, spatial_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalization(out_channels, norm_groups, spatial_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def compute(
        self,
        x: Tensor,  # [B, in_channels, h, w]
        z_q: Tensor | None = None,
    ) -> Tensor:
        """[B, out_channels, h, w]"""
        h = self.conv1(F.silu(self.norm1(x, z_q)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h, z_q))))
        return self.nin_shortcut(x) + h


class AttentionBlock(CheckpointedBlock):
    """Self-attention of one head over the h w positions."""

    def __init__(self, channels: int, *, norm_groups: int, spatial_channels: int | None = None) -> None:
        super().__init__()
        self.norm = normalization(channels, norm_groups, spatial_channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def compute(
        self,
        x: Tensor,  # [B, C, h, w]
        z_q: Tensor | None = None,
    ) -> Tensor:
        """[B, C, h, w]"""
        B, C, h, w = x.shape
        qkv = self.qkv(self.norm(x, z_q)).permute(0, 2, 3, 1).reshape(B, 1, h * w, 3 * C)
        attended = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))  # [B, 1, h w, C]
        return x + self.proj_out(attended.view(B, h, w, C).permute(0, 3, 1, 2))


class MiddleBlocks(nn.Module):
    """Residual, attention (or nothing), residual, at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        *,
        attention: bool,
        dropout: float,
        norm_groups: int,
        spatial_channels: int | None = None,
    ) -> None:
        super().__init__()
        norm: dict[str, Any] = {"norm_groups": norm_groups, "spatial_channels": spatial_channels}
        self.block_1 = ResidualBlock(channels, channels, dropout=dropout, **norm)
        self.attn_1 = AttentionBlock(channels, **norm) if attention else None
        self.block_2 = ResidualBlock(channels, channels, dropout=dropout, **norm)

    def forward(
        self,
        x: Tensor,  # [B, C, h, w]
        z_q: Tensor | None = None,
    ) -> Tensor:
        """[B, C, h, w]"""
        x = self.block_1(x, z_q)
        if self.attn_1 is not None:
            x = self.attn_1(x, z_q)
        return self.block_2(x, z_q)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(
        self,
        x: Tensor,  # [B, C, h, w], h and w even
    ) -> Tensor:
        """[B, C, h/2, w/2]"""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,  # [B, C, h, w]
    ) -> Tensor:
        """[B, C, 2h, 2w]"""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
