"""Opening a data set by its name on the command line."""

from pathlib import Path
from typing import Literal, overload

import numpy as np

from vqdm_train.data.builtin import Digits, Photos
from vqdm_train.data.encoded import Decoded, Encoded
from vqdm_train.data.files import open_folder, open_list
from vqdm_train.data.hub import HubImages
from vqdm_train.data.images import Augmentation, EvalImages, TrainImages
from vqdm_train.data.shards import Shards, is_shards

__all__ = ["KINDS", "open_dataset", "open_encoded"]

KINDS = "builtin:photos, builtin:digits, a folder, a list (.txt), tar shards (.tar) or hf:NAME"

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

    data: "builtin:photos", "builtin:digits" (builtin.py), the path of a folder or of a list of images (files.py), tar
        shards (shards.py) or "hf:NAME" (hub.py).
    split: "train" gives TrainImages, "eval" gives EvalImages (images.py says how each cuts).
    size: side of the square crops, in pixels. in_channels: 1 (grey), 3 (RGB), 4 (RGBA), or of .npy arrays any number.
    min_scale: smallest random scale of training crops, 1 for none; None is 0.5 for photos and 0.8 for files.
    mirror: mirror half of the training crops of photos and files left to right; digits never are.
    max_corrupt: the fraction of corrupt files above which training stops.

    Raises ValueError for any other value, and for a data set without images.
    """
    if split not in ("train", "eval"):
        raise ValueError(f'open_dataset: expected split "train" or "eval", got {split!r}')
    if size < 1:
        raise ValueError(f"open_dataset: expected size >= 1, got {size}")
    if in_channels < 1:
        raise ValueError(f"open_dataset: expected in_channels >= 1, got {in_channels}")
    if not 0 <= max_corrupt <= 1:
        raise ValueError(f"open_dataset: expected max_corrupt in [0, 1], got {max_corrupt}")
    if data in ("builtin:photos", "builtin:digits") and in_channels not in (1, 3):
        raise ValueError(f"open_dataset: expected in_channels 1 (grey) or 3 (RGB) for {data}, got {in_channels}")

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
        whole = Augmentation(window="whole", min_scale=1.0, mirror=False)
        return TrainImages(digits, size, whole, with_replacement=True)

    images = Decoded(open_encoded(data, split, in_channels), in_channels)
    if split == "eval":
        return EvalImages(images, size, "center")
    augmentation = Augmentation(window="file", min_scale=0.8 if min_scale is None else min_scale, mirror=mirror)
    return TrainImages(images, size, augmentation, max_corrupt=max_corrupt)


def open_encoded(data: str, split: str, in_channels: int) -> Encoded:
    """The encoded images of one split of a data set of files; ValueError for a name that means none."""
    if data.startswith("hf:"):
        return HubImages(data, split)
    if data.startswith("pipe:") or "://" in data:
        raise ValueError(
            f"open_dataset: expected data on a disk, since a command or a download would be run, got {data}"
        )
    if is_shards(data):
        return Shards(data, in_channels)
    if Path(data).suffix == ".txt" and Path(data).is_file():
        return open_list(Path(data))
    if Path(data).is_dir():
        return open_folder(Path(data), split, in_channels)
    raise ValueError(f"open_dataset: expected {KINDS}, got {data!r}")
