"""VQGAN (Esser et al. 2021) and its variants with other codebooks, as VQGAN-LC (Zhu et al. 2024) compares them."""

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.model import ModelConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps, vqgan_f16
from vqdm_train.quantizer import QuantizerConfig
from vqdm_train.quantizer_options import EMAConfig, LinearConfig

__all__ = ["vit_vqgan", "vqgan_ema", "vqgan_fc", "vqgan_imagenet_f16", "vqgan_lc"]


def vqgan_imagenet_f16() -> Config:
    """VQGAN on ImageNet, 256 tokens of 16384 codes.

    Source: CompVis/taming-transformers, its configuration of 16384 codes (discriminator of 2 layers from step 0,
    weight 0.75). The learning rate is the published 4.5e-6 for each image of a batch. Differs: the number of GPUs and
    of steps is not published; 96 images a step and 40 epochs are this preset's.
    """
    batch_size = 96
    lr = 4.5e-6 * batch_size
    return Config(
        data=crops("imagenet"),
        model=vqgan_f16(),
        # The published order of the weights: beta = 0.25 is that of the codebook term.
        quantizer=QuantizerConfig(
            kind="vector", codebook_size=16384, init_bound=1 / 16384, commitment_weight=1.0, codebook_weight=0.25
        ),
        losses=LossConfig(l1=1.0, l2=0.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.75),
        discriminator=DiscriminatorConfig(norm="batch", num_layers=2),
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
        steps=epoch_steps(40, IMAGENET, batch_size),
        batch_size=batch_size,
        ema_decay=0.0,
        **RUN,
    )


def vqgan_lc() -> Config:
    """VQGAN-LC on ImageNet, 256 tokens of 100,000 codes: 256 images a step, 100 epochs.

    Source: zh460045050/VQGAN-LC, its script for 16 times downsampling. Codes are a linear map, 768 -> 8, of a frozen
    table. Differs: that table, k-means of CLIP features, is not in this package: `--set quantizer.table=FILE` gives
    it, and without it the table is random.
    """
    return _of_the_comparison(
        QuantizerConfig(
            kind="linear",
            codebook_size=100_000,
            commitment_weight=_RATE,
            codebook_weight=0.33 * _RATE,
            linear=LinearConfig(table_dim=768),
        ),
        code_dim=8,
    )


def vqgan_fc() -> Config:
    """VQGAN-FC: factorised, normalised codes of 8 dimensions, 256 tokens of 16384 (VQGAN-LC's comparison).

    Differs: the source has the comparison's figures, not its settings; all but the codebook is `vqgan-lc`'s.
    """
    quantizer = QuantizerConfig(
        kind="normalized", codebook_size=16384, commitment_weight=_RATE, codebook_weight=0.33 * _RATE
    )
    return _of_the_comparison(quantizer, code_dim=8)


def vqgan_ema() -> Config:
    """VQGAN-EMA: codes that are moving averages of features, 256 tokens of 16384 (VQGAN-LC's comparison).

    Differs: as `vqgan-fc`.
    """
    quantizer = QuantizerConfig(
        kind="ema", codebook_size=16384, commitment_weight=0.33 * _RATE, ema=EMAConfig(decay=0.99, smoothing=1e-5)
    )
    return _of_the_comparison(quantizer, code_dim=256)


def vit_vqgan() -> Config:
    """ViT-VQGAN, base size, 1024 tokens of 8192 normalised codes of 32 dimensions.

    Source: Yu et al. 2022 and the public implementation, thuanz123/enhancing-transformers. Its log-Laplace loss of
    weight 0.1 and its log-Gaussian one of weight 1 are, in its code, l1 and l2 of images in [0, 1]: 0.05 and 0.25 of
    those in [-1, 1]. Differs: the discriminator is a PatchGAN, not a StyleGAN's, and without R1; batch, steps,
    learning rate, its warm-up and the game's weight are this preset's (the code's weight is 1, adaptive).
    """
    lr, steps = 1e-4, 500_000
    optimizer = OptimizerConfig(
        lr=lr, codebook_lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, warmup_steps=10_000, final_lr_ratio=0.0
    )
    return Config(
        data=crops("imagenet"),
        model=ModelConfig(network="vit", patch_size=8, latent_channels=32),
        quantizer=QuantizerConfig(kind="normalized", codebook_size=8192, commitment_weight=1.0, codebook_weight=0.25),
        losses=LossConfig(l1=0.05, l2=0.25, perceptual=0.1),
        adversarial=AdversarialConfig(weight=0.1, start_step=50_001, adaptive=False),
        discriminator=DiscriminatorConfig(),
        optimizer=optimizer,
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=lr, betas=(0.9, 0.99), weight_decay=1e-4),
        steps=steps,
        batch_size=256,
        **RUN,
    )


_RATE = 0.1  # of the quantizer's loss


def _of_the_comparison(quantizer: QuantizerConfig, *, code_dim: int) -> Config:
    """VQGAN-LC's run with another quantizer; the script's learning rate, the code's weights and schedule."""
    batch_size, epochs, lr = 256, 100, 1e-4
    epoch = epoch_steps(1, IMAGENET, batch_size)
    return Config(
        data=crops("imagenet"),
        model=vqgan_f16(latent_channels=code_dim),
        quantizer=quantizer,
        losses=LossConfig(l1=1.0, l2=0.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.1, start_step=50_000),
        discriminator=DiscriminatorConfig(norm="sync_batch", num_layers=2),
        optimizer=OptimizerConfig(
            lr=lr,
            codebook_lr=lr,
            betas=(0.5, 0.9),
            eps=1e-7,
            weight_decay=0.0,
            warmup_steps=5 * epoch,
            final_lr_ratio=0.0,
            grad_clip=None,
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=lr, eps=1e-7, grad_clip=None),
        steps=epochs * epoch,
        batch_size=batch_size,
        ema_decay=0.0,
        **RUN,
    )
