"""RQ-VAE (Lee et al. 2022): several codes of one codebook add up to each vector."""

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps, vqgan_f16
from vqdm_train.quantizer import QuantizerConfig
from vqdm_train.quantizer_options import EMAConfig

__all__ = ["rqvae"]


def rqvae() -> Config:
    """RQ-VAE on ImageNet, 8 x 8 x 4 tokens of 16384 codes of 256 dimensions: 128 images a step, 10 epochs.

    Source: kakaobrain/rq-vae-transformer, in256-rqvae-8x8x4. Differs: 128 images a step are four times the 32 that the
    configuration has for a process; their number is not in it.
    """
    batch_size, lr = 128, 4e-5
    return Config(
        data=crops("imagenet"),
        model=vqgan_f16(channel_multipliers=(1, 1, 2, 2, 4, 4)),
        quantizer=QuantizerConfig(
            kind="ema",
            codebook_size=16384,
            commitment_weight=0.25,
            ema=EMAConfig(decay=0.99, smoothing=1e-5, revive_below=1.0),
            residual_depth=4,
        ),
        losses=LossConfig(l1=0.0, l2=1.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.75),
        discriminator=DiscriminatorConfig(norm="batch", num_layers=2),
        optimizer=OptimizerConfig(
            lr=lr,
            betas=(0.5, 0.9),
            weight_decay=0.0,
            schedule="constant",
            warmup_steps=epoch_steps(0.5, IMAGENET, batch_size),
            grad_clip=None,
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=lr, grad_clip=None),
        steps=epoch_steps(10, IMAGENET, batch_size),
        batch_size=batch_size,
        ema_decay=0.0,
        **RUN,
    )
