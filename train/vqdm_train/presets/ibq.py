"""Index backpropagation (Shi et al. 2024): every code gets a gradient at every step."""

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps, vqgan_f16
from vqdm_train.quantizer import QuantizerConfig

__all__ = ["ibq"]


def ibq() -> Config:
    """IBQ on ImageNet, 256 tokens of 16384 codes of 256 dimensions: 256 images a step, 330 epochs.

    Source: TencentARC/SEED-Voken. Differs: float16 there is bfloat16 here; the discriminator learns before the
    tokenizer there, at the same step, from the same reconstruction; the tokenizer's part of the game is non-saturating
    there, on the mean logit of an image, hinge's here.
    """
    batch_size, lr = 256, 1e-4
    epoch = epoch_steps(1, IMAGENET, batch_size)
    return Config(
        data=crops("imagenet"),
        model=vqgan_f16(num_res_blocks=4),
        quantizer=QuantizerConfig(
            kind="index_backprop", codebook_size=16384, commitment_weight=1.0, codebook_weight=0.25
        ),
        losses=LossConfig(l1=1.0, l2=0.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.1, adaptive=False, lecam=0.05, lecam_decay=0.999),
        discriminator=DiscriminatorConfig(norm="batch"),
        optimizer=OptimizerConfig(
            lr=lr,
            codebook_lr=lr,
            betas=(0.5, 0.9),
            weight_decay=0.0,
            schedule="step",
            decay_steps=(250 * epoch, 300 * epoch),
            warmup_steps=1,
            grad_clip=None,
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=lr, grad_clip=None),
        steps=330 * epoch,
        batch_size=batch_size,
        precision="bfloat16",
        **RUN,
    )
