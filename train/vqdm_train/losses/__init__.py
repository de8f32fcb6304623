"""What the tokenizer and the discriminator are trained to make small; the quantizer's own terms are its own."""

from vqdm_train.losses.adversarial import (
    AdversarialConfig,
    LeCam,
    adaptive_weight,
    adversarial_weight,
    consistency_loss,
    discriminator_loss,
    generator_loss,
)
from vqdm_train.losses.perceptual import SMALLEST_IMAGE, PerceptualLoss
from vqdm_train.losses.reconstruction import LossConfig, batch_psnr, reconstruction_loss

__all__ = [
    "SMALLEST_IMAGE",
    "AdversarialConfig",
    "LeCam",
    "LossConfig",
    "PerceptualLoss",
    "adaptive_weight",
    "adversarial_weight",
    "batch_psnr",
    "consistency_loss",
    "discriminator_loss",
    "generator_loss",
    "reconstruction_loss",
]
