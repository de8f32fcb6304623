"""MoVQ (Zheng et al. 2022): a decoder whose norms see the codes."""

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps, vqgan_f8
from vqdm_train.quantizer import QuantizerConfig

__all__ = ["movq"]


def movq() -> Config:
    """MoVQ at 8 times downsampling, 1024 tokens of 16384 codes of 4 dimensions.

    Source: ai-forever/MoVQGAN, its 67M configuration and the loss in its code (l2, 0.1 LPIPS, 0.1 adversarial, none of
    which the configuration's discriminator weight changes). Differs: its images are not public, and neither are its
    steps and GPUs; ImageNet, 160 images a step (20 a process) and 40 epochs are this preset's; its gradient is clipped
    by value at 1, here by norm.
    """
    batch_size, lr = 160, 1e-4
    return Config(
        data=crops("imagenet"),
        model=vqgan_f8(latent_channels=4, z_channels=4, spatial_norm=True),
        quantizer=QuantizerConfig(
            kind="vector", codebook_size=16384, init_bound=1 / 16384, commitment_weight=1.0, codebook_weight=0.25
        ),
        losses=LossConfig(l1=0.0, l2=1.0, perceptual=0.1),
        adversarial=AdversarialConfig(weight=0.1, adaptive=False),
        discriminator=DiscriminatorConfig(norm="batch", num_layers=2),
        optimizer=OptimizerConfig(
            lr=lr, codebook_lr=lr, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant", warmup_steps=1
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=lr),
        steps=epoch_steps(40, IMAGENET, batch_size),
        batch_size=batch_size,
        ema_decay=0.9999,
        **RUN,
    )
