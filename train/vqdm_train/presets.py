"""Presets: functions that return a Config. A recipe of your own is one more function here, or a --config file.

`demo` and `demo-vanilla` differ in the matching weight alone, so that the two runs side by side show what matching the
codebook's distribution to the features' does: a codebook that is used whole, and a better picture from the same tokens.
`optvq-digits` and `vq-digits` differ in the assignment in training alone, and show the same of optimal transport.
"""

import dataclasses
import math
from collections.abc import Callable

from vqdm_train.checkpoint import CheckpointConfig
from vqdm_train.config import Config, DataConfig
from vqdm_train.losses import LossConfig
from vqdm_train.model import ModelConfig
from vqdm_train.optimizer import OptimizerConfig
from vqdm_train.quantizer import QuantizerConfig
from vqdm_train.quantizer_options import SinkhornConfig

__all__ = [
    "PRESETS",
    "demo",
    "demo_vanilla",
    "optvq_cifar10",
    "optvq_digits",
    "optvq_imagenet_h4",
    "optvq_imagenet_h8",
    "optvq_mnist",
    "vq_digits",
]


def demo() -> Config:
    """Multi-scale Wasserstein VQ on the built-in photographs: minutes on two CPU cores."""
    return Config(
        data=DataConfig(path="builtin:photos", image_size=64),
        # Patches of 4 pixels as channels: convolutions at full resolution would take most of the time.
        model=ModelConfig(
            patch_size=4,
            base_channels=64,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            latent_channels=16,
            attention=False,
            mid_attention=False,
            norm_groups=8,
        ),
        # At 10 bits for 16 dimensions, codes should be spread as the reproduction law of rate-distortion theory says.
        quantizer=QuantizerConfig(
            kind="wasserstein",
            codebook_size=1024,
            init_std=0.65,
            commitment_weight=0.05,
            wasserstein_weight=2.0,
            target="rate_distortion",
            scales=(1, 2, 3, 4, 6, 8),
        ),
        losses=LossConfig(l1=0.2, l2=1.0),
        optimizer=OptimizerConfig(lr=1e-3, codebook_lr=1e-2, warmup_steps=40),
        checkpoint=CheckpointConfig(save_every=200, keep_last=2),
        steps=600,
        batch_size=16,
        channels_last=True,
        ema_decay=0.99,
        sample_every=200,
    )


def demo_vanilla() -> Config:
    """`demo` without matching."""
    config = demo()
    return dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, wasserstein_weight=0.0))


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
    """OptVQ on ImageNet, 16 x 16 x 4 tokens, with the published constants (docs/optvq.md); --data is its folder.

    Of the published loss, the perceptual part (LPIPS, weight 3) and the adversarial part (from step 150,000) are not in
    it yet, nor the changes of colour and the blur of its training crops: what it reaches is not the published figure.
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
        steps=math.ceil(epochs * num_images / batch_size),
        batch_size=batch_size,
        seed=42,
        ema_decay=0.0,
        sample_every=500,
    )


def _optvq_imagenet(*, num_heads: int) -> Config:
    batch_size, epochs, num_images = 64, 50, 1_281_167
    return Config(
        # Published crops have at least a fifth of the picture's area; min_scale is of the side.
        data=DataConfig(path="imagenet", image_size=256, min_scale=0.2**0.5),
        model=ModelConfig(
            base_channels=128,
            channel_multipliers=(1, 1, 2, 2, 4),
            num_res_blocks=2,
            latent_channels=256,
            latent_kernel_size=1,
        ),
        quantizer=_optvq_quantizer(
            codebook_size=16384,
            num_heads=num_heads,
            sinkhorn=SinkhornConfig(floor=1e-8, stats="local"),
        ),
        losses=LossConfig(l1=1.0, l2=1.0),
        optimizer=_optvq_optimizer(batch_size),
        checkpoint=CheckpointConfig(save_every=5000, keep_last=2),
        steps=math.ceil(epochs * num_images / batch_size),
        batch_size=batch_size,
        seed=42,
        ema_decay=0.0,
        log_every=100,
        sample_every=5000,
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "demo-vanilla": demo_vanilla,
    "optvq-digits": optvq_digits,
    "vq-digits": vq_digits,
    "optvq-mnist": optvq_mnist,
    "optvq-cifar10": optvq_cifar10,
    "optvq-imagenet-h4": optvq_imagenet_h4,
    "optvq-imagenet-h8": optvq_imagenet_h8,
}
