"""LPIPS: the distance of two images in the features of a network trained to classify (Zhang et al. 2018, version 0.1).

    d(x, y) = sum over 5 depths of the mean over positions of w . (f(x) / |f(x)| - f(y) / |f(y)|)^2

The network, its five slices and the linear weights w are those of the `lpips` package; the network's own weights are
torchvision's, from a file. Images are in [-1, 1]. Images in [0, 1] would give another distance and no error, so the
first batches of images are looked at.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vqdm_train.losses.frozen import Frozen
from vqdm_train.losses.torchvision_import import import_torchvision
from vqdm_train.losses.weights import ALEX, VGG, fill, find_weights, has_shapes_alone

__all__ = ["LPIPS", "SMALLEST_IMAGE", "PerceptualLoss"]

_CHECKED_BATCHES = 8  # to look at a batch costs a GPU a wait; what feeds wrong images does it from the first on
_ENOUGH_IMAGES = 16  # some pixel of more images than these is darker than middle grey
_ROUNDING = 0.01
SMALLEST_IMAGE = {"vgg": 16, "alex": 31}  # pixels that are something after all of the network's strides


class PerceptualLoss(nn.Module):
    """Mean LPIPS of a batch. Its weights are frozen and in no state dict; its gradient reaches the reconstruction.

    Args:
        network: "vgg" or "alex".
        weights: the file with the network's weights; None is the one in torch's cache.

    Raises:
        FileNotFoundError: the file is not there; the sentence says what to do.
        ValueError: the file holds something else.
    """

    def __init__(self, network: Literal["vgg", "alex"] = "vgg", weights: Path | None = None) -> None:
        super().__init__()
        self.distance = LPIPS(network, weights)
        self._smallest = SMALLEST_IMAGE[network]
        self._batches = _CHECKED_BATCHES if has_shapes_alone() else 0  # without numbers, nothing to look at
        self._images = 0
        self._lowest = float("inf")

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] in [-1, 1], C = 3 or 1
        reconstruction: Tensor,  # same shape; not clamped
    ) -> Tensor:
        """The mean distance, float32 scalar, whatever the autocast.

        Raises:
            ValueError: another number of channels, or, in the first batches, images outside [-1, 1].
        """
        if images.shape != reconstruction.shape or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "perceptual loss: expected images and reconstruction [B, C, H, W] of one shape with C = 3 or 1, got "
                f"{list(images.shape)} and {list(reconstruction.shape)}; --set losses.perceptual=0 does without it"
            )
        if min(images.shape[2:]) < self._smallest:
            raise ValueError(
                f"perceptual loss: expected images of {self._smallest} pixels or more, got {list(images.shape)}; "
                "--set losses.perceptual=0 does without it"
            )
        if self._batches < _CHECKED_BATCHES:
            self._look_at(images.detach())
        shape = (-1, 3, -1, -1)
        with torch.autocast(images.device.type, enabled=False):
            return self.distance(images.float().expand(shape), reconstruction.float().expand(shape)).mean()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As of any module, but that the look at the first batches, which counts them, stays outside."""
        self.distance.compile(*args, **kwargs)

    def _look_at(self, images: Tensor) -> None:
        low, high = (float(bound) for bound in torch.aminmax(images))
        if low < -1 - _ROUNDING or high > 1 + _ROUNDING:
            raise ValueError(f"perceptual loss: expected images in [-1, 1], got {low:.4g} ... {high:.4g}")
        self._batches += 1
        self._images += len(images)
        self._lowest = min(self._lowest, low)
        if self._lowest >= 0 and self._images > _ENOUGH_IMAGES:
            self._batches = _CHECKED_BATCHES  # said once
            warnings.warn(
                f"perceptual loss: expected images in [-1, 1]; the first {self._images} lie in [0, 1], "
                "which is another distance if that is their range",
                stacklevel=2,
            )


class LPIPS(Frozen):
    """The distance of each pair, without looking at them; arguments and errors as of `PerceptualLoss`."""

    def __init__(self, network: Literal["vgg", "alex"], weights: Path | None) -> None:
        super().__init__()
        file = find_weights(VGG if network == "vgg" else ALEX, weights)
        import_torchvision()
        import lpips

        # On meta nothing is allocated or drawn; lpips asks torchvision for its networks in an old way, and hears so.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            metric = lpips.LPIPS(net=network, pretrained=False, pnet_rand=True, verbose=False)
        self.metric = metric
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{network}.pth"
        # slice2.7.weight is torchvision's features.7.weight; 2.model.1.weight is lpips' lin2.model.1.weight
        fill(metric.net, file, lambda name: f"features.{name.split('.', 1)[1]}")
        fill(metric.lins, heads, lambda name: f"lin{name}")
        self.freeze()

    def forward(
        self,
        x: Tensor,  # [B, 3, H, W] in [-1, 1]
        y: Tensor,  # same shape
    ) -> Tensor:  # [B]
        return self.metric(x, y).flatten()
