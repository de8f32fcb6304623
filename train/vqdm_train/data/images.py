"""Images of a data set as the model sees them: random crops for training, fixed crops for evaluation.

Training takes a square window at a random place, resizes it to `size`, and mirrors half of the crops left to right
unless told not to.

    photos:  the window has size / s pixels, s uniform in [min_scale, 1]: the photograph is shrunk by s, then cut
    folder:  the window has s * short side pixels: at min_scale = 1 the short side is resized to `size`, then cut
    digits:  the whole digit, never mirrored

A window never exceeds the short side, so an image smaller than the crop is enlarged until its short side is `size`.

Evaluation is the same on every run and machine.

    photos:  all non-overlapping crops at the shifts (0, 0), (0, size/2), (size/2, 0), (size/2, size/2), unscaled
    folder:  short side to `size`, centre crop
    digits:  each digit once
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from vqdm_train.data.crops import center_crop, cut_window, enlarge, shift_positions, to_tensor
from vqdm_train.data.decode import CorruptImageError

__all__ = ["CorruptDataError", "EvalImages", "Source", "TrainImages"]


class Source(Protocol):
    """Where pixels come from. `load` raises CorruptImageError for a file that cannot be read."""

    description: str

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def load(self, index: int) -> np.ndarray: ...  # uint8 [H, W, C]


class CorruptDataError(ValueError):
    """More corrupt files than a run may pass over; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training crop is taken; see the head of this file. `window` is "photo", "folder" or "whole"."""

    window: str
    min_scale: float
    mirror: bool

    def __post_init__(self) -> None:
        if self.window not in ("photo", "folder", "whole"):
            raise ValueError(f"Augmentation: expected window photo, folder or whole, got {self.window!r}")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"open_dataset: expected min_scale in (0, 1], got {self.min_scale}")


class TrainImages:
    """Random crops of the images of a source. Holds no random state: every draw comes from the generator given."""

    def __init__(
        self,
        source: Source,
        size: int,
        augmentation: Augmentation,
        *,
        weights: np.ndarray | None = None,  # [number of images], any positive scale; None: all images alike
        max_corrupt: float = 0.001,
    ) -> None:
        self.source, self.size, self.augmentation = source, size, augmentation
        self.max_corrupt = max_corrupt
        self.corrupt: dict[str, str] = {}  # name -> reason, of the files passed over so far
        self._cumulative = None if weights is None else np.cumsum(weights) / np.sum(weights)

    def __len__(self) -> int:
        """Number of source images."""
        return len(self.source)

    @property
    def description(self) -> str:
        return self.source.description

    def name(self, index: int) -> str:
        return self.source.name(index)

    def sample(self, generator: np.random.Generator) -> int:
        """A random image: in proportion to the weights where there are any, else uniform."""
        if self._cumulative is None:
            return int(generator.integers(len(self)))
        return int(np.searchsorted(self._cumulative, generator.random(), side="right"))

    def crop(self, index: int, generator: np.random.Generator) -> Tensor:  # [C, size, size] in [-1, 1]
        """One random crop of image `index`, or, where its file is corrupt, of the next one that is not."""
        return to_tensor([self.crop_pixels(index, generator)])[0]

    def crop_pixels(self, index: int, generator: np.random.Generator) -> np.ndarray:
        """`crop` before its conversion: uint8 [size, size, C]."""
        pixels = self._load_good(index)
        window = self._window(min(pixels.shape[:2]), generator)
        crop = cut_window(pixels, window, self.size, generator)
        return crop[:, ::-1] if self.augmentation.mirror and generator.random() < 0.5 else crop

    def _window(self, short: int, generator: np.random.Generator) -> int:
        if self.augmentation.window == "whole":
            return short
        scale = generator.uniform(self.augmentation.min_scale, 1.0)
        window = self.size / scale if self.augmentation.window == "photo" else short * scale
        return max(1, min(round(window), short))

    def _load_good(self, index: int) -> np.ndarray:
        # The replacement is a function of the index and of the files alone, not of what was met before: resuming needs
        # no memory of the corrupt files. Nothing was drawn from the generator yet, so the crop is a function of it too.
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if self.name(candidate) in self.corrupt:
                continue
            try:
                return self.source.load(candidate)
            except CorruptImageError as error:
                self.corrupt[self.name(candidate)] = error.reason
                self._check_corrupt()
        raise CorruptDataError(f"TrainImages: expected a readable image, got {len(self)} corrupt ones")

    def _check_corrupt(self) -> None:
        if len(self.corrupt) <= self.max_corrupt * len(self):
            return
        named = "; ".join(f"{name}: {reason}" for name, reason in list(self.corrupt.items())[:10])
        raise CorruptDataError(
            f"TrainImages: expected at most {self.max_corrupt:.2%} corrupt files of {len(self)}, "
            f"got {len(self.corrupt)} ({named}); `vqdm data check` lists them all"
        )


class EvalImages:
    """Fixed crops, in a fixed order. Strict: a corrupt file raises CorruptImageError where it is met."""

    def __init__(self, source: Source, size: int, crops: str) -> None:
        if crops not in ("grid", "center"):
            raise ValueError(f"EvalImages: expected crops grid or center, got {crops!r}")
        self.source, self.size = source, size
        # (image, top, left); a centre crop has no position of its own, and is read only when it is asked for.
        self._crops: list[tuple[int, int, int] | tuple[int]] = []
        for index in range(len(source)):
            if crops == "grid":
                height, width = enlarge(source.load(index), size).shape[:2]
                self._crops.extend((index, top, left) for top, left in shift_positions(height, width, size))
            else:
                self._crops.append((index,))

    def __len__(self) -> int:
        return len(self._crops)

    @property
    def description(self) -> str:
        return f"{self.source.description}, {len(self)} fixed crops of {self.size} x {self.size} pixels"

    def name(self, i: int) -> str:
        index, *position = self._crops[i]
        return self.source.name(index) + "".join(f"-{offset}" for offset in position)

    def __getitem__(self, i: int) -> Tensor:  # [C, size, size] in [-1, 1]
        crop = self._crops[i]
        pixels = self.source.load(crop[0])
        if len(crop) == 1:
            return to_tensor([center_crop(pixels, self.size)])[0]
        _, top, left = crop
        return to_tensor([enlarge(pixels, self.size)[top : top + self.size, left : left + self.size]])[0]
