"""The `data` part of a run's configuration, and the two data sets that it names."""

from dataclasses import dataclass

from vqdm_train.data.images import EvalImages, TrainImages
from vqdm_train.data.open import KINDS, open_dataset
from vqdm_train.data.survey import survey

__all__ = ["DataConfig", "open_eval", "open_train"]

_MOST_SHARED = 4096  # images that are trained on and evaluated
_SMALLEST = 7  # pixels


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from, and their size: square crops of `image_size` pixels."""

    path: str = "builtin:photos"  # or another of open.KINDS
    eval_path: str | None = None  # where held-out images come from; None is the held-out split of `path`
    image_size: int = 64
    in_channels: int = 3  # 1 grey, 3 RGB, 4 RGBA; any number of .npy arrays
    min_scale: float | None = None  # smallest random scale of training crops; None is the data set's own
    mirror: bool = True  # half of the training crops, of all but digits
    max_corrupt: float = 0.001  # the part of corrupt files above which training stops
    workers: int = 1  # threads that decode and crop, of each process; the images are the same for any number

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(f"data: expected path to be {KINDS}, got an empty string")
        if self.eval_path is not None and self.eval_path in ("", self.path):
            raise ValueError(f"data: expected eval_path to be another data set or null, got {self.eval_path!r}")
        if self.image_size < _SMALLEST:
            raise ValueError(f"data: expected image_size >= {_SMALLEST}, which SSIM asks for, got {self.image_size}")
        if self.in_channels < 1:
            raise ValueError(f"data: expected in_channels >= 1, got {self.in_channels}")
        if self.min_scale is not None and not 0 < self.min_scale <= 1:
            raise ValueError(f"data: expected min_scale in (0, 1] or null, got {self.min_scale}")
        if not 0 <= self.max_corrupt <= 1:
            raise ValueError(f"data: expected max_corrupt in [0, 1], got {self.max_corrupt}")
        if self.workers < 1:
            raise ValueError(f"data: expected workers >= 1, got {self.workers}")


def open_train(data: DataConfig) -> TrainImages:
    """The images to train on. Raises CorruptDataError where a sample of them shows that too many are corrupt."""
    images = open_dataset(
        data.path,
        split="train",
        size=data.image_size,
        in_channels=data.in_channels,
        min_scale=data.min_scale,
        mirror=data.mirror,
        max_corrupt=data.max_corrupt,
    )
    if not data.path.startswith("builtin:"):  # those come with the installation
        survey(images, workers=data.workers)
    return images


def open_eval(data: DataConfig, trained_on: TrainImages | None = None) -> EvalImages:
    """The held-out images, in fixed crops: of `eval_path`, or of the held-out split of `path`.

    Where `path` has no such split, images of `trained_on`, of `open_train`, serve both: at most 4,096 of them, evenly
    spread, and corrupt ones are replaced as in training.
    """
    if trained_on is not None and data.eval_path is None and trained_on.source.shared:
        # Opened once: shards take a while.
        held_out = EvalImages(trained_on.source, data.image_size, "center", trained_on=trained_on)
        held_out.thin(_MOST_SHARED)
        return held_out
    path = data.path if data.eval_path is None else data.eval_path
    return open_dataset(path, split="eval", size=data.image_size, in_channels=data.in_channels)
