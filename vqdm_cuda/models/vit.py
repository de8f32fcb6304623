"""Encoder and decoder of ViT-VQGAN (Yu et al. 2022), vision transformers on patches of pixels.

    encoder  patches to tokens, + positions -> blocks -> norm -> quant_conv
    decoder  post_quant_conv, + positions -> blocks -> norm -> tokens to patches
    block    x <- x + proj(softmax(q k^T d^-1/2) v), several heads     x <- x + linear(tanh(linear(x))), both of norm(x)

Details that the paper leaves open are those of the public implementation (Enhancing Transformers, T. H. Nguyen): fixed
sine and cosine positions, which fit any size of image; no bias on q, k and v; a linear layer alone on either side of
the quantizer; and Xavier initialisation.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_cuda.models.checkpointing import CheckpointedBlock
from vqdm_cuda.models.network import DecoderNetwork, EncoderNetwork

__all__ = ["ViTDecoder", "ViTEncoder", "ViTOptions"]


@dataclass(frozen=True, kw_only=True)
class ViTOptions:
    """Shape of a vision transformer; the defaults are ViT-VQGAN's base size."""

    in_channels: int = 3
    latent_channels: int = 32
    patch_size: int = 8
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"ViTOptions: expected {name} of at least 1, got {value}")
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                f"ViTOptions: expected width to be a multiple of num_heads {self.num_heads} and of 4, got {self.width}"
            )


class ViTEncoder(EncoderNetwork):
    """Images [B, in_channels, H, W] to latents [B, latent_channels, H/patch_size, W/patch_size].

    Options as in `ViTOptions`.
    """

    kind: ClassVar[str] = "vit_encoder"

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 32,
        patch_size: int = 8,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_width: int = 3072,
    ) -> None:
        super().__init__()
        self.options = ViTOptions(
            in_channels=in_channels,
            latent_channels=latent_channels,
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_width=mlp_width,
        )
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, patch_size
        self.conv_in = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.transformer = _Transformer(self.options)
        self.quant_conv = nn.Conv2d(width, latent_channels, 1)
        self.apply(_initialize)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind} | asdict(self.options)

    def forward(
        self,
        images: Tensor,  # [B, in_channels, H, W] in [-1, 1]
    ) -> Tensor:
        """Latents [B, latent_channels, H/patch_size, W/patch_size]."""
        return self.quant_conv(self.transformer(self.conv_in(images)))


class ViTDecoder(DecoderNetwork):
    """Latents [B, latent_channels, h, w] to images [B, in_channels, patch_size h, patch_size w], not clamped.

    Options as in `ViTOptions` and equal to the encoder's.
    """

    kind: ClassVar[str] = "vit_decoder"

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 32,
        patch_size: int = 8,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_width: int = 3072,
    ) -> None:
        super().__init__()
        self.options = ViTOptions(
            in_channels=in_channels,
            latent_channels=latent_channels,
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_width=mlp_width,
        )
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, patch_size
        self.post_quant_conv = nn.Conv2d(latent_channels, width, 1)
        self.transformer = _Transformer(self.options)
        self.conv_out = nn.ConvTranspose2d(width, in_channels, patch_size, stride=patch_size)
        self.apply(_initialize)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv_out.get_parameter("weight")

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind} | asdict(self.options)

    def forward(
        self,
        z_q: Tensor,  # [B, latent_channels, h, w]
    ) -> Tensor:
        """Images [B, in_channels, patch_size h, patch_size w]."""
        return self.conv_out(self.transformer(self.post_quant_conv(z_q)))


class _Transformer(nn.Module):
    """Positions, blocks and a last norm: [B, width, h, w] to the same shape."""

    def __init__(self, options: ViTOptions) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(options) for _ in range(options.depth))
        self.norm = nn.LayerNorm(options.width)

    def forward(
        self,
        x: Tensor,  # [B, width, h, w]
    ) -> Tensor:
        """[B, width, h, w]"""
        width, h, w = x.shape[1:]
        x = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h w, width]
        x = x + _positions(h, w, width, x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).unflatten(1, (h, w)).permute(0, 3, 1, 2)


class _Block(CheckpointedBlock):
    def __init__(self, options: ViTOptions) -> None:
        super().__init__()
        width = options.width
        self.num_heads = options.num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, options.mlp_width), nn.Tanh(), nn.Linear(options.mlp_width, width))

    def compute(
        self,
        x: Tensor,  # [B, N, width]
    ) -> Tensor:
        """[B, N, width]"""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, num_heads, N, width / num_heads]
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def _positions(
    h: int,
    w: int,
    width: int,
    device: torch.device,
) -> Tensor:
    """[h w, width]: of the column in the first half and the row in the second, sines and then cosines of its number
    times 10,000^(-4 i / width), i = 0, 1, ..., width / 4 - 1 (MAE, He et al. 2022)."""
    quarter = width // 4
    frequencies = 10_000 ** -(torch.arange(quarter, device=device, dtype=torch.float32) / quarter)

    def waves(size: int) -> Tensor:  # [size, width / 2]
        angles = torch.arange(size, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    columns, rows = waves(w).expand(h, w, -1), waves(h)[:, None].expand(h, w, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


def _initialize(module: nn.Module) -> None:
    """Xavier uniform matrices (a kernel is one of its first dimension by the rest) and biases of zero."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.xavier_uniform_(module.weight.data.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
