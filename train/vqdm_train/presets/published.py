"""What published runs have in common: the data set's size, its epochs in steps, and VQGAN's network."""

import math
from typing import Any

from vqdm_train.checkpoint import CheckpointConfig
from vqdm_train.data import DataConfig
from vqdm_train.model import ModelConfig

__all__ = ["FFHQ", "IMAGENET", "RUN", "crops", "epoch_steps", "vqgan_f8", "vqgan_f16"]

IMAGENET = 1_281_167  # training images
FFHQ = 70_000

# How often a run of days logs, draws and saves.
RUN: dict[str, Any] = {
    "checkpoint": CheckpointConfig(save_every=5000, keep_last=2),
    "log_every": 100,
    "sample_every": 5000,
}


def epoch_steps(epochs: float, num_images: int, batch_size: int) -> int:
    return math.ceil(epochs * num_images / batch_size)


def crops(path: str, image_size: int = 256, **changes: Any) -> DataConfig:
    """Random crops of images scaled so that the shorter side fits, mirrored: what most of these runs see."""
    return DataConfig(path=path, image_size=image_size, **({"min_scale": 1.0} | changes))


def vqgan_f16(**changes: Any) -> ModelConfig:
    """VQGAN's network at 16 times downsampling (Esser et al. 2021): 256 channels, a 1x1 convolution to the codes."""
    network: dict[str, Any] = {
        "base_channels": 128,
        "channel_multipliers": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "latent_channels": 256,
        "z_channels": 256,
        "latent_kernel_size": 1,
    }
    return ModelConfig(**(network | changes))


def vqgan_f8(**changes: Any) -> ModelConfig:
    """The same at 8 times downsampling."""
    return vqgan_f16(channel_multipliers=(1, 2, 2, 4), **changes)
