"""Opening a data set by its name on the command line: builtin:photos, builtin:digits or a folder."""

from pathlib import Path
from typing import Literal, overload

import numpy as np

from vqdm_train.data.builtin import Digits, Photos
from vqdm_train.data.folder import Folder
from vqdm_train.data.images import Augmentation, EvalImages, TrainImages

__all__ = ["open_dataset"]

# A photograph's share of the crops grows with its pixels up to this many: the retina (2 Mpixel of one colour) and the
# Hubble field (0.9 Mpixel, mostly black) would otherwise be half of all crops.
_MAX_WEIGHT_PIXELS = 512 * 512


@overload
def open_dataset(
    data: str,
    *,
    split: Literal["train"],
    size: int,
    in_channels: int = 3,
    min_scale: float | None = None,
    mirror: bool = True,
    max_corrupt: float = 0.001,
) -> TrainImages: ...
@overload
def open_dataset(data: str, *, split: Literal["eval"], size: int, in_channels: int = 3) -> EvalImages: ...
def open_dataset(
    data: str,
    *,
    split: str,
    size: int,
    in_channels: int = 3,
    min_scale: float | None = None,
    mirror: bool = True,
    max_corrupt: float = 0.001,
) -> TrainImages | EvalImages:
    """Open one split of a data set.

    data: "builtin:photos", "builtin:digits" (builtin.py) or the path of a folder of images (folder.py).
    split: "train" gives TrainImages, "eval" gives EvalImages (images.py says how each cuts).
    size: side of the square crops, in pixels. in_channels: 1 (grey) or 3 (RGB).
    min_scale: smallest random scale of training crops, 1 for none; None is 0.5 for photos and 0.8 for a folder.
    mirror: mirror half of the training crops of photos and folders left to right; digits never are.
    max_corrupt: the fraction of corrupt files above which training stops.

    Raises ValueError for any other value, and for a folder without images.
    """
    if split not in ("train", "eval"):
        raise ValueError(f'open_dataset: expected split "train" or "eval", got {split!r}')
    if size < 1:
        raise ValueError(f"open_dataset: expected size >= 1, got {size}")
    if in_channels not in (1, 3):
        raise ValueError(f"open_dataset: expected in_channels 1 (grey) or 3 (RGB), got {in_channels}")
    if not 0 <= max_corrupt <= 1:
        raise ValueError(f"open_dataset: expected max_corrupt in [0, 1], got {max_corrupt}")

    if data == "builtin:photos":
        photos = Photos(split, in_channels)
        if split == "eval":
            return EvalImages(photos, size, "grid")
        pixels = np.array([photos.load(i)[:, :, 0].size for i in range(len(photos))])
        augmentation = Augmentation(window="photo", min_scale=0.5 if min_scale is None else min_scale, mirror=mirror)
        return TrainImages(photos, size, augmentation, weights=np.minimum(pixels, _MAX_WEIGHT_PIXELS))

    if data == "builtin:digits":
        digits = Digits(split, size, in_channels)
        if split == "eval":
            return EvalImages(digits, size, "center")
        if min_scale is not None:
            raise ValueError(
                f"open_dataset: expected no min_scale for builtin:digits (digits are not cut), got {min_scale}"
            )
        if not mirror:
            raise ValueError("open_dataset: expected mirror=true for builtin:digits (digits never are), got false")
        return TrainImages(digits, size, Augmentation(window="whole", min_scale=1.0, mirror=False))

    if not Path(data).is_dir():
        raise ValueError(f"open_dataset: expected builtin:photos, builtin:digits or a folder of images, got {data!r}")
    folder = Folder(Path(data), split, in_channels)
    if split == "eval":
        return EvalImages(folder, size, "center")
    augmentation = Augmentation(window="folder", min_scale=0.8 if min_scale is None else min_scale, mirror=mirror)
    return TrainImages(folder, size, augmentation, max_corrupt=max_corrupt)
