"""Wasserstein VQ at 256 pixels: the seed paper's runs and the 2026 release. docs/wasserstein.md has the quantizers."""

from vqdm_train.config import Config
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import FFHQ, IMAGENET, RUN, crops, epoch_steps, vqgan_f16
from vqdm_train.presets.var import SCALES, var_network
from vqdm_train.quantizer import QuantizerConfig

__all__ = [
    "wasserstein_ffhq_256",
    "wasserstein_imagenet_256",
    "wasserstein_imagenet_256_50000",
    "wasserstein_imagenet_256_100000",
    "wasserstein_var_2026",
]


def wasserstein_imagenet_256() -> Config:
    """Wasserstein VQ on ImageNet, 680 tokens of 16384 codes: 256 images a step, 20 epochs.

    Source: the seed paper, Table 1, and its code. Features are pulled to N(0, 0.05^2 I), from which the frozen codes
    are drawn; 4 channels at stride 8 become 16 at stride 16. Differs: channel multipliers are VQGAN's for stride 8,
    (1, 2, 2, 4), as the paper states none; batch statistics are those of all processes.
    """
    return _seed_paper("imagenet", IMAGENET, codebook_size=16384, batch_size=256, epochs=20)


def wasserstein_imagenet_256_50000() -> Config:
    """`wasserstein-imagenet-256` with 50,000 codes."""
    return _seed_paper("imagenet", IMAGENET, codebook_size=50_000, batch_size=256, epochs=20)


def wasserstein_imagenet_256_100000() -> Config:
    """`wasserstein-imagenet-256` with 100,000 codes."""
    return _seed_paper("imagenet", IMAGENET, codebook_size=100_000, batch_size=256, epochs=20)


def wasserstein_ffhq_256() -> Config:
    """`wasserstein-imagenet-256` on FFHQ (the seed paper, Table 2): 128 images a step, 200 epochs.

    The published figures are of the images that were trained on; here, the evaluation takes held-out ones.
    """
    return _seed_paper("ffhq", FFHQ, codebook_size=16384, batch_size=128, epochs=200)


def wasserstein_var_2026() -> Config:
    """Wasserstein VQ in VAR's tokenizer, 680 tokens of 4096 codes: 64 images a step, 5 epochs of ImageNet.

    Source: the 2026 release of the paper's authors. Differs, and much: there the encoder is VAR's released one and
    frozen, codes and phi are trained first, and then the decoder alone, with the discriminator, for 10 or 15 epochs.
    Here all is trained together from the start, so features are held to their codes (commitment_weight 0.25), and the
    networks have the learning rate of phi. phi's learning rate is the network's 1e-3.
    """
    batch_size = 64
    return Config(
        data=crops("imagenet"),
        model=var_network(),
        quantizer=QuantizerConfig(
            kind="wasserstein",
            codebook_size=4096,
            init_bound=1 / 4096,
            commitment_weight=0.25,
            codebook_weight=1.0,
            wasserstein_weight=0.2,
            unbiased=True,
            cov_scale=0.25,
            queue_size=2 * 87_040,  # of both its processes
            scales=SCALES,
            scale_weights=(1, 1, 1, 2, 2, 2, 3, 3, 5, 5),
        ),
        losses=LossConfig(l1=0.0, l2=1.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.5, lecam=0.001, augment=True, consistency=4.0),
        discriminator=DiscriminatorConfig(network="dino", norm="sync_batch"),
        optimizer=OptimizerConfig(lr=1e-3, codebook_lr=5e-3, betas=(0.9, 0.95), weight_decay=1e-5),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=1e-5, betas=(0.9, 0.95), weight_decay=1e-5),
        steps=epoch_steps(5, IMAGENET, batch_size),
        batch_size=batch_size,
        **RUN,
    )


def _seed_paper(path: str, num_images: int, *, codebook_size: int, batch_size: int, epochs: int) -> Config:
    epoch = epoch_steps(1, num_images, batch_size)
    return Config(
        data=crops(path, mirror=False),
        model=vqgan_f16(channel_multipliers=(1, 2, 2, 4), attention=False, latent_channels=16, latent_patch_size=2),
        quantizer=QuantizerConfig(
            kind="wasserstein",
            codebook_size=codebook_size,
            init_std=0.05,
            freeze_codebook=True,
            codebook_weight=0.0,
            # 0.2 (quantization term) + 0.2 * 16 / 68 (commitment term), both sums over the 16 channels
            commitment_weight=16 * (0.2 + 0.2 * 16 / 68),
            wasserstein_weight=0.3,
            target="gaussian",
            target_std=0.05,
            grad_to="features",
            tau=1e-8,
            scales=SCALES,
            num_phi=None,
            scale_weights=(0,) * 9 + (1,),
            matching="pooled_and_last",
        ),
        losses=LossConfig(l1=1.0, l2=0.0, perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.2, start_step=50_000),
        discriminator=DiscriminatorConfig(norm="sync_batch", num_layers=2),
        optimizer=OptimizerConfig(
            lr=5e-4,
            betas=(0.5, 0.9),
            eps=1e-7,
            weight_decay=0.0,
            warmup_steps=5 * epoch,
            final_lr_ratio=0.0,
            grad_clip=None,
        ),
        discriminator_optimizer=DiscriminatorOptimizerConfig(lr=5e-4, eps=1e-7, grad_clip=None),
        steps=epochs * epoch,
        batch_size=batch_size,
        seed=12,
        ema_decay=0.0,
        **RUN,
    )
