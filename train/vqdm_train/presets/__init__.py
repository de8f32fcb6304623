"""Presets: functions that return a Config, a file for each family. Your own recipe is one more, or a --config file.

`demo` and `demo-vanilla` differ in the matching weight alone, so that the two runs side by side show what matching the
codebook's distribution to the features' does: a codebook that is used whole, and a better picture from the same tokens.
`optvq-digits` and `vq-digits` differ in the assignment in training alone, and show the same of optimal transport.

The others are published runs, at the size and with the constants of their papers and public code, each with its source;
`data.path` names the data set to give with --data. No figure of theirs was reproduced here. What all of them differ in
from their sources: the initialisation of the networks (`ModelConfig.init_gain`), the random crops (DataConfig), the
codes' exact nearest search, statistics over all processes, and steps that are not finite are left out.
"""

from collections.abc import Callable

from vqdm_train.config import Config
from vqdm_train.presets.demo import demo, demo_gan, demo_vanilla
from vqdm_train.presets.ibq import ibq
from vqdm_train.presets.llamagen import llamagen
from vqdm_train.presets.movq import movq
from vqdm_train.presets.optvq import (
    optvq_cifar10,
    optvq_digits,
    optvq_imagenet_h4,
    optvq_imagenet_h8,
    optvq_mnist,
    vq_digits,
)
from vqdm_train.presets.rqvae import rqvae
from vqdm_train.presets.simvq import simvq
from vqdm_train.presets.var import var_vqvae, vqdm_256
from vqdm_train.presets.vqgan import vit_vqgan, vqgan_ema, vqgan_fc, vqgan_imagenet_f16, vqgan_lc
from vqdm_train.presets.wasserstein import (
    wasserstein_ffhq_256,
    wasserstein_imagenet_256,
    wasserstein_imagenet_256_50000,
    wasserstein_imagenet_256_100000,
    wasserstein_var_2026,
)

__all__ = ["PRESETS", "demo", "demo_vanilla", "optvq_digits", "vq_digits"]

PRESETS: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "demo-vanilla": demo_vanilla,
    "demo-gan": demo_gan,
    "optvq-digits": optvq_digits,
    "vq-digits": vq_digits,
    "optvq-mnist": optvq_mnist,
    "optvq-cifar10": optvq_cifar10,
    "optvq-imagenet-h4": optvq_imagenet_h4,
    "optvq-imagenet-h8": optvq_imagenet_h8,
    "vqdm-256": vqdm_256,
    "wasserstein-imagenet-256": wasserstein_imagenet_256,
    "wasserstein-imagenet-256-50000": wasserstein_imagenet_256_50000,
    "wasserstein-imagenet-256-100000": wasserstein_imagenet_256_100000,
    "wasserstein-ffhq-256": wasserstein_ffhq_256,
    "wasserstein-var-2026": wasserstein_var_2026,
    "var-vqvae": var_vqvae,
    "vqgan-imagenet-f16": vqgan_imagenet_f16,
    "vqgan-ema": vqgan_ema,
    "vqgan-fc": vqgan_fc,
    "vqgan-lc": vqgan_lc,
    "vit-vqgan": vit_vqgan,
    "llamagen": llamagen,
    "simvq": simvq,
    "ibq": ibq,
    "rqvae": rqvae,
    "movq": movq,
}
