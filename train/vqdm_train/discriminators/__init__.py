"""Networks that tell images from reconstructions: `build_discriminator` makes the one of a config."""

from vqdm_train.discriminators.config import DiscriminatorConfig, build_discriminator
from vqdm_train.discriminators.diffaug import augment
from vqdm_train.discriminators.dino import DinoDiscriminator
from vqdm_train.discriminators.patch import PatchDiscriminator

__all__ = ["DinoDiscriminator", "DiscriminatorConfig", "PatchDiscriminator", "augment", "build_discriminator"]
