"""Real images that come with the installed packages, so that a first run needs no data of one's own and no network.

`builtin:photos`, from the files of the scikit-image wheel. A photograph is a picture that a camera took through a
lens, microscope and telescope included. Not photographs, and left out: drawings and renderings (chessboard, color,
horse, logo, phantom, the pictures in multipage), printed and written text (page, text), a computed phase map (cell), a
102-pixel piece of one colour plane of a retina (microaneurysms) and 25-pixel faces (lfw_subset). chelsea and coffee
are held out and never trained on. The motorcycle pair, one scene from two places, is trained on. Grey photographs
become `in_channels` equal channels.

`builtin:digits`, scikit-learn's 1,797 handwritten digits of 8 x 8 pixels and 17 grey levels v: round(255 v / 16), then
enlarged to the asked size by the bicubic filter. In scikit-learn's order, the last 297 are held out.

Both are drawn with replacement in training: the photographs because they are drawn by weight, both because there are so
few of them that an epoch means little.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vqdm_train.data.crops import resize
from vqdm_train.data.decode import read_image

__all__ = ["EVAL_PHOTOS", "NUM_EVAL_DIGITS", "TRAIN_PHOTOS", "Digits", "Photos", "missing_photos", "photo_folder"]

TRAIN_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "clock_motion.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
EVAL_PHOTOS = ("chelsea.png", "coffee.png")
NUM_EVAL_DIGITS = 297


def photo_folder() -> Path:
    """The data folder inside the installed scikit-image package (never its download cache)."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError("builtin:photos: expected scikit-image to be installed, got none: pip install scikit-image")
    return Path(spec.origin).parent / "data"


def missing_photos() -> list[str]:
    """The photographs that this installation of scikit-image should carry and does not."""
    folder = photo_folder()
    return [name for name in (*TRAIN_PHOTOS, *EVAL_PHOTOS) if not (folder / name).is_file()]


class Photos:
    """Photographs of one split, decoded once: 10 MiB in memory for training, 1 MiB for evaluation."""

    def __init__(self, split: str, in_channels: int) -> None:
        missing = missing_photos()
        if missing:
            raise ValueError(
                "builtin:photos: expected the photographs of the scikit-image wheel, "
                f"got an installation without {', '.join(missing)}: pip install --force-reinstall scikit-image"
            )
        self.in_channels = in_channels
        self.names = TRAIN_PHOTOS if split == "train" else EVAL_PHOTOS
        self.description = f"builtin:photos: {len(self.names)} photographs ({', '.join(map(_stem, self.names))})"
        self._pixels = [read_image(photo_folder() / name, in_channels) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return _stem(self.names[index])

    def load(self, index: int) -> np.ndarray:
        """uint8 [H, W, C]."""
        return self._pixels[index]


class Digits:
    """Handwritten digits of one split, enlarged to [size, size] when they are asked for."""

    def __init__(self, split: str, size: int, in_channels: int) -> None:
        from sklearn.datasets import load_digits  # over a second to import, and needed by this data set alone

        digits = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
        num_train = len(digits) - NUM_EVAL_DIGITS
        self._first = 0 if split == "train" else num_train
        self._digits = digits[:num_train] if split == "train" else digits[num_train:]
        self._size, self.in_channels = size, in_channels
        self.description = f"builtin:digits: {len(self._digits)} digits, from number {self._first}"

    def __len__(self) -> int:
        return len(self._digits)

    def name(self, index: int) -> str:
        return f"digit-{self._first + index:04d}"

    def load(self, index: int) -> np.ndarray:
        """uint8 [size, size, C]."""
        enlarged = resize(self._digits[index][:, :, None], self._size, self._size)
        return np.repeat(enlarged, self.in_channels, axis=2)


def _stem(name: str) -> str:
    return Path(name).stem
