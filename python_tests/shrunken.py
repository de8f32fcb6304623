"""A preset at a size that a test can run: the same parts, each narrow."""

import dataclasses

from vqdm_train.config import Config
from vqdm_train.data import DataConfig
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.model import ModelConfig, ViTConfig
from vqdm_train.quantizer import QuantizerConfig

__all__ = ["shrunken"]


def shrunken(config: Config) -> Config:
    """Few narrow layers, 4 x 4 latents, few codes; two steps of four images, with the adversarial part on from the
    first, a PatchGAN in DINO's place, and no LPIPS, which needs a file.
    """
    model = _model(config.model)
    adversarial = dataclasses.replace(config.adversarial, start_step=0, warmup_steps=0, ramp_steps=0)
    optimizer = dataclasses.replace(
        config.optimizer,
        warmup_steps=config.optimizer.warmup_steps if config.optimizer.schedule == "one_cycle" else 1,
        decay_steps=(1,) if config.optimizer.decay_steps else (),
    )
    return dataclasses.replace(
        config,
        data=DataConfig(image_size=4 * model.downsampling, in_channels=config.data.in_channels),
        model=model,
        quantizer=_quantizer(config.quantizer),
        losses=dataclasses.replace(config.losses, perceptual=0.0),
        adversarial=adversarial,
        discriminator=DiscriminatorConfig(norm=config.discriminator.norm, num_layers=1, base_channels=4),
        optimizer=optimizer,
        steps=2,
        batch_size=4,
        num_samples=2,
    )


def _model(model: ModelConfig) -> ModelConfig:
    if model.network == "small":
        return dataclasses.replace(model, latent_channels=16)
    if model.network == "vit":
        return dataclasses.replace(
            model, latent_channels=16, vit=ViTConfig(width=16, depth=1, num_heads=2, mlp_width=16)
        )
    return dataclasses.replace(
        model,
        base_channels=8,
        channel_multipliers=tuple(min(m, 2) for m in model.channel_multipliers[-2:]),
        num_res_blocks=1,
        norm_groups=4,
        latent_channels=16,
        z_channels=model.z_channels and 12,
    )


def _quantizer(quantizer: QuantizerConfig) -> QuantizerConfig:
    scales = (1, 2, 4) if quantizer.scales else ()
    return dataclasses.replace(
        quantizer,
        codebook_size=32,
        scales=scales,
        scale_weights=quantizer.scale_weights[-len(scales) :] if quantizer.scale_weights else (),
        queue_size=100 if quantizer.queue_size else 0,
        linear=dataclasses.replace(quantizer.linear, table_dim=quantizer.linear.table_dim and 12),
    )
