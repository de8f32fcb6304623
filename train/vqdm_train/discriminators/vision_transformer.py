"""DINO's ViT-S/16 (Caron et al. 2021; Dosovitskiy et al. 2021), with the names of its published weights.

tokens = [class; patches of 16 pixels] + positions
x + attention(norm1(x)), x + mlp(norm2(x))          12 blocks, 6 heads, width 384, GELU
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqdm_train.losses.frozen import Frozen

__all__ = ["VisionTransformer"]


class VisionTransformer(Frozen):
    """The features on the way: of the embedded patches and after every third block. It classifies nothing, so the
    published file's last norm is left out."""

    image_size = 224
    width = 384
    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (self.image_size // 16) ** 2, self.width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, self.width, 16, stride=16)})
        self.blocks = nn.ModuleList(Block(self.width, num_heads=6) for _ in range(12))

    def forward(
        self,
        images: Tensor,  # [B, 3, 224, 224], normalised as DINO's were
    ) -> list[Tensor]:  # 5 of [B, 384, 196]
        """Patch tokens, each with the class token added (StyleGAN-T's readout)."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1).to(patches.dtype), patches], dim=1) + self.pos_embed
        features = [_readout(x)]
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth % 3 == 0:
                features.append(_readout(x))
        return features


def _readout(x: Tensor) -> Tensor:
    return (x[:, 1:] + x[:, :1]).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:  # [B, L, width]
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Attention(nn.Module):
    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, width]
        B, L, _ = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, -1))
