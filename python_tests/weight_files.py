"""Files of weights in the form of the published ones, whose numbers are random."""

import math
from pathlib import Path

import torch

# Convolutions of the published files: index, in, out, kernel size.
ALEX = [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)]
VGG16 = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)]
VGG16 += [(17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)]
LAYERS = {"alex": ALEX, "vgg": [(*layer, 3) for layer in VGG16]}


def write_weights(path: Path, network: str, seed: int = 1) -> Path:
    """A file in the form of torchvision's."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for index, before, after, size in LAYERS[network]:
        scale = math.sqrt(2 / (before * size * size))
        weights[f"features.{index}.weight"] = scale * torch.randn(after, before, size, size, generator=generator)
        weights[f"features.{index}.bias"] = 0.1 * torch.randn(after, generator=generator)
    weights["classifier.1.weight"] = torch.zeros(2, 2)  # of which LPIPS has no need
    torch.save(weights, path)
    return path


def dino_shapes() -> dict[str, tuple[int, ...]]:
    """Of dino_deitsmall16_pretrain.pth."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 197, 384),
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "patch_embed.proj.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    }
    for i in range(12):
        for name, rows, columns in (
            ("attn.qkv", 1152, 384),
            ("attn.proj", 384, 384),
            ("mlp.fc1", 1536, 384),
            ("mlp.fc2", 384, 1536),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (384,), f"blocks.{i}.{name}.bias": (384,)}
    return shapes


def write_dino(path: Path, seed: int = 0) -> Path:
    """A file in the form of DINO's."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) * 0.05 + ("norm" in name and "weight" in name)
        for name, shape in dino_shapes().items()
    }
    torch.save(weights, path)
    return path
