"""VAR's multi-scale tokenizer (Tian et al. 2024), and this project's own recipe, which builds on it."""

from typing import Any

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.model import ModelConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps
from vqdm_train.quantizer import QuantizerConfig

__all__ = ["SCALES", "var_network", "var_vqvae", "vqdm_256"]

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def var_network(**changes: Any) -> ModelConfig:
    """The released tokenizer's network, which is also ModelConfig's default."""
    return ModelConfig(**changes)


def var_vqvae() -> Config:
    """VAR's tokenizer, 680 tokens of 4096 codes: 768 images a step, 250 epochs.

    Source: the released weights for the shape; its training code was never released. The constants are the defaults of
    the authors' single-scale trainer (FoundationVision/vaex), their best public hint. Differs: the tokenizer was
    trained on OpenImages, epochs are counted on ImageNet here; DINO is read at five depths, there at twelve.
    """
    batch_size, epochs = 768, 250
    steps = epoch_steps(epochs, IMAGENET, batch_size)
    return Config(
        data=crops("imagenet", min_scale=1 / 1.125, mirror=False),
        model=var_network(dropout=0.05, init_gain=0.5, residual_gain=1.0),
        quantizer=QuantizerConfig(
            kind="vector",
            codebook_size=4096,
            init_bound=20 / 4096,
            commitment_weight=0.25,
            codebook_weight=1.0,
            scales=SCALES,
        ),
        losses=LossConfig(l1=0.2, l2=1.0, perceptual=1.0),
        adversarial=AdversarialConfig(
            weight=0.4,
            start_step=round(0.22 * steps),
            ramp_steps=round(0.02 * steps),
            adaptive_eps=1e-6,
            adaptive_min=0.015,
            augment=True,
            consistency=2.0,  # half of the published 4: its two halves of the discriminator's loss are added
        ),
        discriminator=DiscriminatorConfig(network="dino", norm="sync_batch"),
        optimizer=OptimizerConfig(
            lr=3e-4,
            codebook_lr=3e-4,
            betas=(0.5, 0.9),
            weight_decay=0.005,
            warmup_steps=round(0.01 * steps),
            final_lr_ratio=0.3,
            grad_clip=10.0,
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=3e-4, weight_decay=0.0005, grad_clip=10.0),
        steps=steps,
        batch_size=batch_size,
        ema_decay=0.9999,
        **RUN,
    )


def vqdm_256() -> Config:
    """This project's recipe at 256 pixels, 680 tokens of 4096 codes. An argument, not a result: it was never run.

    - Network and scales are VAR's: the one multi-scale tokenizer that generators were built on.
    - Matching to the reproduction law of rate-distortion theory: in the demo, matching takes the codes in use from
      17 % to 98 % and PSNR up by 1 dB at equal tokens (docs/results.md); and at 32 dimensions codes half as wide as
      the features beat codes of their width in E, U and C (docs/experiments.md, figure4), which is what that law says.
    - Statistics over a queue: the codes' covariance is one of 4096 vectors in 32 dimensions and moves slowly; that of
      the features should not jump with a batch.
    - A codebook that learns ten times as fast as the networks, as in the demo.
    - DINO's discriminator in the place of a PatchGAN: GigaTok publishes rFID 0.81 without it and 0.51 with it. It
      learns for 2,500 steps before the tokenizer hears of it, and is then turned up over 2,500 more, with LeCam and
      DiffAug: a game that starts at once undoes what was learned.
    """
    batch_size, epochs = 256, 50
    steps = epoch_steps(epochs, IMAGENET, batch_size)
    return Config(
        data=crops("imagenet", min_scale=0.8),
        model=var_network(),
        quantizer=QuantizerConfig(
            kind="wasserstein",
            codebook_size=4096,
            init_std=0.65,
            commitment_weight=0.05,
            wasserstein_weight=2.0,
            target="rate_distortion",
            queue_size=174_080,
            scales=SCALES,
        ),
        losses=LossConfig(l1=0.2, l2=1.0, perceptual=1.0),
        adversarial=AdversarialConfig(
            weight=0.5, start_step=steps // 5, warmup_steps=2500, ramp_steps=2500, lecam=0.001, augment=True
        ),
        discriminator=DiscriminatorConfig(network="dino", norm="sync_batch"),
        optimizer=OptimizerConfig(lr=3e-4, codebook_lr=3e-3, weight_decay=0.005, warmup_steps=5000),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=1e-4, weight_decay=0.0005),
        steps=steps,
        batch_size=batch_size,
        precision="bfloat16",
        channels_last=True,
        ema_decay=0.9999,
        **RUN,
    )
