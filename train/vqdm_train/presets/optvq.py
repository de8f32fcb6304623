"""OptVQ (arXiv 2412.15195): optimal transport as the assignment in training. docs/optvq.md has the details."""

import dataclasses

from vqdm_train.checkpoint import CheckpointConfig
from vqdm_train.config import Config
from vqdm_train.data import DataConfig
from vqdm_train.discriminators import DiscriminatorConfig
from vqdm_train.losses import AdversarialConfig, LossConfig
from vqdm_train.model import ModelConfig
from vqdm_train.optimizer import DiscriminatorOptimizerConfig, OptimizerConfig
from vqdm_train.presets.published import IMAGENET, RUN, crops, epoch_steps, vqgan_f16
from vqdm_train.quantizer import QuantizerConfig
from vqdm_train.quantizer_options import SinkhornConfig

__all__ = ["optvq_cifar10", "optvq_digits", "optvq_imagenet_h4", "optvq_imagenet_h8", "optvq_mnist", "vq_digits"]


def optvq_digits() -> Config:
    """OptVQ with its small autoencoder on the built-in digits, 16 tokens each: about two minutes on two CPU cores.

    As in the paper's comparison on small images, the codebook has no linear map.
    """
    return Config(
        data=DataConfig(path="builtin:digits", image_size=16, in_channels=1),
        model=ModelConfig(network="small", latent_channels=32),
        quantizer=_optvq_quantizer(codebook_size=256, num_heads=1, sinkhorn=SinkhornConfig(linear_map=False)),
        losses=LossConfig(l1=1.0, l2=1.0),
        optimizer=OptimizerConfig(lr=3e-3, codebook_lr=3e-3, warmup_steps=40),
        checkpoint=CheckpointConfig(save_every=400, keep_last=2),
        steps=1200,
        batch_size=64,
        ema_decay=0.99,
        sample_every=400,
    )


def vq_digits() -> Config:
    """`optvq-digits` with the nearest code in training too."""
    config = optvq_digits()
    return dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, kind="vector"))


def optvq_mnist() -> Config:
    """OptVQ on MNIST (Table 2 of the paper); --data is a folder of its 60,000 images, with `train` and `test` in it.

    The published configuration of the images, the network and the quantizer, for 100 epochs. The learning rate is the
    published 2e-6 for each image of a batch, which the sources state for ImageNet.
    """
    return _optvq_small("mnist", in_channels=1, num_images=60_000)


def optvq_cifar10() -> Config:
    """`optvq-mnist` for CIFAR-10: --data is a folder of its 50,000 images, with `train` and `test` in it."""
    return _optvq_small("cifar10", in_channels=3, num_images=50_000)


def optvq_imagenet_h4() -> Config:
    """OptVQ on ImageNet, 16 x 16 x 4 tokens, with the published constants (docs/optvq.md): 64 images a step, 50 epochs.

    Source: arXiv 2412.15195, Table 1, and its code. Differs: crops are not changed in colour or blurred; the
    discriminator's gradient is its own (in the code, the tokenizer's step leaves some on it) and is clipped to 1, as
    the tokenizer's is.
    """
    return _optvq_imagenet(num_heads=4)


def optvq_imagenet_h8() -> Config:
    """`optvq-imagenet-h4` with 16 x 16 x 8 tokens."""
    return _optvq_imagenet(num_heads=8)


def _optvq_quantizer(*, codebook_size: int, num_heads: int, sinkhorn: SinkhornConfig) -> QuantizerConfig:
    """OptVQ's codes, N(0, 1), and its order of the weights: beta = 0.25 is that of the codebook term."""
    return QuantizerConfig(
        kind="sinkhorn",
        codebook_size=codebook_size,
        num_heads=num_heads,
        init_std=1.0,
        commitment_weight=1.0,
        codebook_weight=0.25,
        wasserstein_weight=0.0,
        sinkhorn=sinkhorn,
    )


def _optvq_optimizer(batch_size: int) -> OptimizerConfig:
    lr = 2e-6 * batch_size
    return OptimizerConfig(
        lr=lr,
        codebook_lr=lr,
        betas=(0.85, 0.999),
        eps=1e-7,
        weight_decay=0.05,
        schedule="one_cycle",
        grad_clip=1.0,
        clip_together=True,
    )


def _optvq_small(name: str, *, in_channels: int, num_images: int) -> Config:
    batch_size, epochs = 1024, 100
    return Config(
        data=DataConfig(path=name, image_size=32, in_channels=in_channels, min_scale=1.0, mirror=False),
        model=ModelConfig(network="small", latent_channels=8),
        quantizer=_optvq_quantizer(
            codebook_size=1024,
            num_heads=4,
            sinkhorn=SinkhornConfig(floor=1e-8, stats="local", linear_map=False),
        ),
        losses=LossConfig(l1=1.0, l2=1.0),
        optimizer=_optvq_optimizer(batch_size),
        checkpoint=CheckpointConfig(save_every=500, keep_last=2),
        steps=epoch_steps(epochs, num_images, batch_size),
        batch_size=batch_size,
        seed=42,
        ema_decay=0.0,
        sample_every=500,
    )


def _optvq_imagenet(*, num_heads: int) -> Config:
    batch_size = 64
    optimizer = _optvq_optimizer(batch_size)
    return Config(
        # Published crops have at least a fifth of the picture's area; min_scale is of the side.
        data=crops("imagenet", min_scale=0.2**0.5),
        model=vqgan_f16(),
        quantizer=_optvq_quantizer(
            codebook_size=16384,
            num_heads=num_heads,
            sinkhorn=SinkhornConfig(floor=1e-8, stats="local"),
        ),
        losses=LossConfig(l1=1.0, l2=1.0, perceptual=3.0),
        adversarial=AdversarialConfig(weight=1.0, start_step=150_000),
        discriminator=DiscriminatorConfig(norm="sync_batch"),
        optimizer=optimizer,
        discriminator_optimizer=DiscriminatorOptimizerConfig(
            lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay
        ),
        steps=epoch_steps(50, IMAGENET, batch_size),
        batch_size=batch_size,
        seed=42,
        ema_decay=0.0,
        **RUN,
    )
