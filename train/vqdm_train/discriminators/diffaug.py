"""DiffAug (Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, 2020), all of its three parts.

    colour        x + U(-1/2, 1/2); distance of each channel to their mean times U(0, 2); that of each pixel to the
                  image's mean times U(1/2, 3/2)
    translation   by up to an eighth of each side, filled with 0, which is middle grey
    cutout        a box of a fifth of each side, anywhere, that may reach over the border: 0

Each image has draws of its own, from torch's default generator on the CPU, so that they are the same on all devices.
The gradient reaches the images.
"""

import torch
from torch import Tensor

__all__ = ["augment"]

_TRANSLATION = 1 / 8
_CUTOUT = 0.2


def augment(
    images: Tensor,  # [B, C, H, W] in [-1, 1]
) -> Tensor:  # [B, C, H, W]; colour may leave [-1, 1]
    """All three on each image."""
    return _cutout(_translate(_colour(images)))


def _draws(images: Tensor, low: float, high: float) -> Tensor:
    """[B, 1, 1, 1] on the images' device, uniform in [low, high)."""
    draws = torch.rand(len(images), 1, 1, 1, device="cpu").to(images.device, images.dtype, non_blocking=True)
    return low + (high - low) * draws


def _colour(images: Tensor) -> Tensor:
    images = images + _draws(images, -0.5, 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * _draws(images, 0.0, 2.0)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * _draws(images, 0.5, 1.5)


def _translate(images: Tensor) -> Tensor:
    for dim in (2, 3):
        size = images.shape[dim]
        reach = round(size * _TRANSLATION)
        shift = _whole(images, -reach, reach)
        source = _positions(images, dim) - shift
        # Around the corner and then blanked: each pixel is read once, so that its gradient is a copy and no sum.
        images = images.gather(dim, (source % size).expand_as(images)) * ((source >= 0) & (source < size))
    return images


def _cutout(images: Tensor) -> Tensor:
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for dim in (2, 3):
        size = images.shape[dim]
        box = round(size * _CUTOUT)
        start = _whole(images, 0, size - box % 2) - box // 2  # the box's middle is anywhere in the image
        position = _positions(images, dim)
        inside = inside & (position >= start) & (position < start + box)
    return images * ~inside


def _whole(images: Tensor, low: int, high: int) -> Tensor:
    """[B, 1, 1, 1] whole numbers in low ... high, both included."""
    return torch.randint(low, high + 1, (len(images), 1, 1, 1), device="cpu").to(images.device, non_blocking=True)


def _positions(images: Tensor, dim: int) -> Tensor:
    """0, 1, ... along a dimension of four."""
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    return torch.arange(images.shape[dim], device=images.device).view(shape)
