"""Which discriminator a run has, and its making."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from vqdm_train.discriminators.dino import DinoDiscriminator
from vqdm_train.discriminators.norm import NormKind
from vqdm_train.discriminators.patch import PatchDiscriminator

__all__ = ["DiscriminatorConfig", "build_discriminator"]


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The network, by its kind: convolutions on patches, or heads on the features of a frozen DINO."""

    network: Literal["patch", "dino"] = "patch"
    # batch takes its statistics over the images of one process, as some published runs did; sync_batch over all
    norm: NormKind = "group"
    # of network patch:
    num_layers: int = 3  # convolutions of stride 2; a logit sees 70 pixels with 3, 34 with 2
    base_channels: int = 64
    # of network dino:
    weights: str | None = None  # a file with DINO's weights; None is the one in torch's cache

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.base_channels < 1:
            raise ValueError(
                f"discriminator: expected num_layers and base_channels >= 1, got {self.num_layers} and "
                f"{self.base_channels}"
            )
        if self.weights == "":
            raise ValueError("discriminator: expected weights to be a file or null, got an empty string")
        for name, network in (("num_layers", "patch"), ("base_channels", "patch"), ("weights", "dino")):
            value = getattr(self, name)
            if self.network != network and value != getattr(type(self), name):
                raise ValueError(f"discriminator: expected {name} only with network={network}, got {name}={value}")

    @property
    def smallest_image(self) -> int:
        """Pixels of a side that leave one logit."""
        return 1 if self.network == "dino" else 3 * 2**self.num_layers


def build_discriminator(
    config: DiscriminatorConfig,
    in_channels: int,  # of the images
) -> nn.Module:
    """Images [B, in_channels, H, W] in [-1, 1] -> logits [B, ...], high for images and low for reconstructions.

    Raises:
        FileNotFoundError: DINO's weights are not there; the sentence says what to do.
        ValueError: the file holds something else, or DINO is to see another number of channels than 1 or 3.
    """
    if config.network == "dino":
        if in_channels not in (1, 3):
            raise ValueError(f"discriminator: expected 1 or 3 channels with network=dino, got {in_channels}")
        weights = None if config.weights is None else Path(config.weights)
        return DinoDiscriminator(norm=config.norm, weights=weights)
    return PatchDiscriminator(
        in_channels, num_layers=config.num_layers, base_channels=config.base_channels, norm=config.norm
    )
