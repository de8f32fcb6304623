"""The `data` part of a run's configuration, and the two data sets that it names."""

from dataclasses import dataclass

from vqdm_train.data.images import EvalImages, TrainImages
from vqdm_train.data.open import open_dataset

__all__ = ["DataConfig", "open_eval", "open_train"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from, and their size: square crops of `image_size` pixels."""

    path: str = "builtin:photos"  # or builtin:digits, or a folder
    image_size: int = 64
    in_channels: int = 3
    min_scale: float | None = None  # smallest random scale of training crops; None is the data set's own
    mirror: bool = True  # half of the training crops, of photos and folders
    max_corrupt: float = 0.001  # the part of corrupt files above which training stops

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(
                "data: expected path to be builtin:photos, builtin:digits or a folder, got an empty string"
            )
        if self.image_size < 1:
            raise ValueError(f"data: expected image_size >= 1, got {self.image_size}")
        if self.in_channels not in (1, 3):
            raise ValueError(f"data: expected in_channels to be 1 or 3, got {self.in_channels}")
        if self.min_scale is not None and not 0 < self.min_scale <= 1:
            raise ValueError(f"data: expected min_scale in (0, 1] or null, got {self.min_scale}")
        if not 0 <= self.max_corrupt <= 1:
            raise ValueError(f"data: expected max_corrupt in [0, 1], got {self.max_corrupt}")


def open_train(data: DataConfig) -> TrainImages:
    """The images to train on."""
    return open_dataset(
        data.path,
        split="train",
        size=data.image_size,
        in_channels=data.in_channels,
        min_scale=data.min_scale,
        mirror=data.mirror,
        max_corrupt=data.max_corrupt,
    )


def open_eval(data: DataConfig) -> EvalImages:
    """The held-out images, in fixed crops."""
    return open_dataset(data.path, split="eval", size=data.image_size, in_channels=data.in_channels)
