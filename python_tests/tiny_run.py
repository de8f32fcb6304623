"""A training run that takes seconds: 32-pixel images, a few thousand parameters, its own folder of images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqdm_train.config import Config
from vqdm_train.distributed import World
from vqdm_train.presets import demo
from vqdm_train.settings import apply_json, merge, parse_settings

TINY = (
    "data.image_size=32",
    "model.patch_size=1",
    "model.base_channels=8",
    "model.channel_multipliers=1,1,2",
    "model.latent_channels=4",
    "model.norm_groups=4",
    "quantizer.codebook_size=32",
    "quantizer.scales=1,2,4,8",
    "optimizer.warmup_steps=2",
    "optimizer.lr=3e-3",
    "quantizer.target=features",
    "batch_size=4",
    "steps=20",
    "log_every=5",
    "sample_every=10",
    "num_samples=2",
    "checkpoint.save_every=5",
)
# Codes that nothing moves: features are pulled to where they are.
FROZEN = [
    *("quantizer.freeze_codebook=true", "quantizer.codebook_weight=0", "quantizer.grad_to=features"),
    *("quantizer.target=gaussian", "quantizer.target_std=0.65"),
]
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def write_images(folder: Path, count: int = 6, size: int = 40) -> Path:
    """Smooth random pictures: noise on a 4 x 4 grid, enlarged."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        noise = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"image-{i}.png")
    return folder


def tiny_config(images: Path, *settings: str) -> Config:
    """The demo preset made tiny, on a folder of images, with further settings."""
    config = demo()
    return apply_json(config, merge(parse_settings(config, TINY + settings), {"data": {"path": str(images)}}))


def tiny_flags(images: Path) -> list[str]:
    """The same on the command line."""
    return ["--preset", "demo", "--data", str(images), *(word for setting in TINY for word in ("--set", setting))]
