"""PatchGAN (Isola et al. 2017) in the form of pix2pix and VQGAN: a logit for each overlapping patch of an image."""

import itertools

import torch
from torch import Tensor, nn

from vqdm_train.discriminators.norm import BatchNorm, NormKind, build_norm

__all__ = ["PatchDiscriminator"]

_MOST = 8  # times base_channels


class PatchDiscriminator(nn.Module):
    """4x4 convolutions: num_layers of stride 2, then two of stride 1, with leaky ReLU 0.2 between them.

    Channels double from base_channels on, eight-fold at most; all convolutions but the first and the last are
    normalised. Weights start as N(0, 0.02^2), those of the norms as N(1, 0.02^2).
    """

    def __init__(self, in_channels: int, *, num_layers: int, base_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.smallest = 3 * 2**num_layers  # pixels that leave one logit
        channels = [base_channels * min(2**i, _MOST) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(itertools.pairwise(channels), start=1):
            # The mean over a batch takes a bias away again; the mean over a group of channels does not.
            conv = nn.Conv2d(before, after, 4, stride=2 if i < num_layers else 1, padding=1, bias=norm == "group")
            layers += [conv, build_norm(norm, after), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(channels[-1], 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_start)

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] in [-1, 1]
    ) -> Tensor:  # [B, 1, h, w]
        if min(images.shape[2:]) < self.smallest:
            raise ValueError(
                f"discriminator: expected images of {self.smallest} pixels or more with num_layers, got "
                f"{list(images.shape)}"
            )
        return self.layers(images)


@torch.no_grad()
def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        module.weight.normal_(0.0, 0.02)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, (BatchNorm, nn.GroupNorm)):
        module.weight.normal_(1.0, 0.02)
