"""Blocks of the convolutional encoder and decoder of VQGAN (Esser et al. 2021) in the form of VAR (Tian et al. 2024).

    ResidualBlock   x + conv(dropout(silu(norm(conv(silu(norm(x)))))))     1x1 convolution on x where channels change
    AttentionBlock  x + proj(softmax(q k^T C^-1/2) v)                      q, k, v: thirds of one 1x1 convolution
    Downsample      3x3 convolution of stride 2, padded by one at the right and bottom only
    Upsample        nearest neighbour x2, then a 3x3 convolution

All keep the memory format of their input, channels last included. Parameter names are those of VQGAN and VAR.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AttentionBlock", "Downsample", "MiddleBlocks", "ResidualBlock", "Upsample", "group_norm"]


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """Affine group normalisation with VQGAN's eps of 1e-6.

    Raises:
        ValueError: channels is not a multiple of num_groups.
    """
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"group_norm: expected norm_groups to divide the {channels} channels, got {num_groups}")
    return nn.GroupNorm(num_groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, dropout: float, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self,
        x: Tensor,  # [B, in_channels, h, w]
    ) -> Tensor:
        """[B, out_channels, h, w]"""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Self-attention of one head over the h w positions."""

    def __init__(self, channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, norm_groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(
        self,
        x: Tensor,  # [B, C, h, w]
    ) -> Tensor:
        """[B, C, h, w]"""
        B, C, h, w = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(B, 1, h * w, 3 * C)
        attended = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))  # [B, 1, h w, C]
        return x + self.proj_out(attended.view(B, h, w, C).permute(0, 3, 1, 2))


class MiddleBlocks(nn.Module):
    """Residual, attention (or nothing), residual, at the lowest resolution."""

    def __init__(self, channels: int, *, attention: bool, dropout: float, norm_groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout=dropout, norm_groups=norm_groups)
        self.attn_1 = AttentionBlock(channels, norm_groups=norm_groups) if attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, dropout=dropout, norm_groups=norm_groups)

    def forward(
        self,
        x: Tensor,  # [B, C, h, w]
    ) -> Tensor:
        """[B, C, h, w]"""
        return self.block_2(self.attn_1(self.block_1(x)))


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
