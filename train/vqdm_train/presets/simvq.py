"""SimVQ (Zhu et al. 2024): a linear map moves a frozen table as a whole."""

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps, vqgan_f8
from vqdm_train.quantizer import QuantizerConfig

__all__ = ["simvq"]


def simvq() -> Config:
    """SimVQ on ImageNet at 128 pixels, 256 tokens of 65536 codes of 128 dimensions: 256 a step, 50 epochs.

    Source: youngsheen/SimVQ, its configuration for 128 pixels, with the codebook of its README's table. Differs: its
    mixed precision is float16; 256 images a step are this preset's (64 for each of a number of GPUs that is not
    stated); the configuration names no attention but that of the middle; the tokenizer's part of the game is
    non-saturating there, on the mean logit of an image, hinge's here.
    """
    batch_size, lr = 256, 1e-4
    return Config(
        data=crops("imagenet", image_size=128),
        model=vqgan_f8(latent_channels=128, z_channels=128, attention=False),
        quantizer=QuantizerConfig(kind="linear", codebook_size=65536, commitment_weight=0.25, codebook_weight=1.0),
        losses=LossConfig(l1=1.0, l2=0.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.1, adaptive=False),
        discriminator=DiscriminatorConfig(norm="batch"),
        optimizer=OptimizerConfig(
            lr=lr,
            codebook_lr=lr,
            betas=(0.5, 0.9),
            weight_decay=0.0,
            schedule="constant",
            warmup_steps=1,
            grad_clip=None,
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=lr, grad_clip=None),
        steps=epoch_steps(50, IMAGENET, batch_size),
        batch_size=batch_size,
        precision="bfloat16",
        **RUN,
    )
