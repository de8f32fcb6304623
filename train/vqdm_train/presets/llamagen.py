"""LlamaGen's tokenizer (Sun et al. 2024)."""

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps, vqgan_f16
from vqdm_train.quantizer import QuantizerConfig

__all__ = ["llamagen"]


def llamagen() -> Config:
    """LlamaGen's tokenizer on ImageNet, 256 tokens of 16384 normalised codes of 8 dimensions: 128 a step, 40 epochs.

    Source: FoundationVision/LlamaGen, the defaults of its trainer. Differs: the crops' random scale is of a continuous
    range; its entropy loss has weight 0 there and is not here.
    """
    batch_size, lr = 128, 1e-4
    return Config(
        data=crops("imagenet", min_scale=0.8),
        model=vqgan_f16(latent_channels=8),
        quantizer=QuantizerConfig(kind="normalized", codebook_size=16384, init_bound=1 / 16384),
        losses=LossConfig(l1=0.0, l2=1.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.5, start_step=20_000, adaptive=False),
        discriminator=DiscriminatorConfig(norm="batch"),
        optimizer=OptimizerConfig(
            lr=lr, codebook_lr=lr, weight_decay=0.0, schedule="constant", warmup_steps=1, clip_together=True
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=lr, betas=(0.9, 0.95)),
        steps=epoch_steps(40, IMAGENET, batch_size),
        batch_size=batch_size,
        precision="bfloat16",
        ema_decay=0.9999,
        **RUN,
    )
