"""Wasserstein VQ on the built-in photographs: with matching, without, and with a discriminator."""

import dataclasses

from vqdm_train.checkpoint import CheckpointConfig
from vqdm_train.config import Config
from vqdm_train.data import DataConfig
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.model import ModelConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.quantizer import QuantizerConfig

__all__ = ["demo", "demo_gan", "demo_vanilla"]


def demo() -> Config:
    """Multi-scale Wasserstein VQ on the built-in photographs: minutes on two CPU cores."""
    return Config(
        data=DataConfig(path="builtin:photos", image_size=64),
        # Patches of 4 pixels as channels: convolutions at full resolution would take most of the time.
        model=ModelConfig(
            patch_size=4,
            base_channels=64,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            latent_channels=16,
            attention=False,
            mid_attention=False,
            norm_groups=8,
        ),
        # At 10 bits for 16 dimensions, codes should be spread as the reproduction law of rate-distortion theory says.
        quantizer=QuantizerConfig(
            kind="wasserstein",
            codebook_size=1024,
            init_std=0.65,
            commitment_weight=0.05,
            wasserstein_weight=2.0,
            target="rate_distortion",
            scales=(1, 2, 3, 4, 6, 8),
        ),
        losses=LossConfig(l1=0.2, l2=1.0),
        optimizer=OptimizerConfig(lr=1e-3, codebook_lr=1e-2, warmup_steps=40),
        checkpoint=CheckpointConfig(save_every=200, keep_last=2),
        steps=600,
        batch_size=16,
        channels_last=True,
        ema_decay=0.99,
        sample_every=200,
    )


def demo_vanilla() -> Config:
    """`demo` without matching."""
    config = demo()
    return dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, wasserstein_weight=0.0))


def demo_gan() -> Config:
    """`demo` with a PatchGAN discriminator and no perceptual loss: sharper pictures, at the cost of squared error.

    The discriminator soon tells all patches apart; adaptive_min keeps it from being weighed down to nothing then.
    """
    return dataclasses.replace(
        demo(),
        adversarial=AdversarialConfig(weight=0.8, start_step=300, warmup_steps=100, ramp_steps=50, adaptive_min=0.004),
        discriminator=DiscriminatorConfig(num_layers=3, base_channels=32),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=5e-4),
        steps=1000,
    )
