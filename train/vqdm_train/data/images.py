"""Images of a data set as the model sees them: random crops for training, fixed crops for evaluation.

Training takes a square window at a random place, resizes it to `size`, and mirrors half of the crops left to right
unless told not to.

    photos:  the window has size / s pixels, s uniform in [min_scale, 1]: the photograph is shrunk by s, then cut
    files:   the window has s * short side pixels: at min_scale = 1 the short side is resized to `size`, then cut
    digits:  the whole digit, never mirrored

A window never exceeds the short side, so an image smaller than the crop is enlarged until its short side is `size`.

Evaluation is the same on every run and machine.

    photos:  all non-overlapping crops at the shifts (0, 0), (0, size/2), (size/2, 0), (size/2, size/2), unscaled
    files:   short side to `size`, centre crop
    digits:  each digit once
"""

import math
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
    in_channels: int
    shared: bool  # whether the same images serve training and evaluation

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def load(self, index: int) -> np.ndarray: ...  # uint8 or uint16 [H, W, in_channels]


class CorruptDataError(ValueError):
    """More corrupt files than a run may pass over; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training crop is taken; see the head of this file. `window` is "photo", "file" or "whole"."""

    window: str
    min_scale: float
    mirror: bool

    def __post_init__(self) -> None:
        if self.window not in ("photo", "file", "whole"):
            raise ValueError(f"Augmentation: expected window photo, file or whole, got {self.window!r}")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"open_dataset: expected min_scale in (0, 1], got {self.min_scale}")


class TrainImages:
    """Random crops of the images of a source. Holds no random state: every draw comes from the generator given.

    A corrupt file is replaced by the next one that is whole. `load` may be called by several threads; `account` keeps
    the count of what they met, and stops the run when it is too high.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        augmentation: Augmentation,
        *,
        weights: np.ndarray | None = None,  # [number of images], any positive scale; None: all images alike
        with_replacement: bool = False,  # weights can be kept in no other way, and imply it
        max_corrupt: float = 0.001,
    ) -> None:
        self.source, self.size, self.augmentation = source, size, augmentation
        self.in_channels = source.in_channels
        self.with_replacement = with_replacement or weights is not None
        self.max_corrupt = max_corrupt
        self.corrupt: dict[str, str] = {}  # name -> reason, of the files passed over so far
        self._cumulative = None if weights is None else np.cumsum(weights) / np.sum(weights)
        self._reasons: dict[int, str] = {}  # of all files known to be corrupt, by any thread
        self._seen = np.zeros(len(source), dtype=bool)
        self._num_seen = 0

    def __len__(self) -> int:
        """Number of source images."""
        return len(self.source)

    @property
    def description(self) -> str:
        if not self._num_seen:
            return self.source.description
        return f"{self.source.description}; {self._num_seen} looked at, {len(self.corrupt)} of them corrupt"

    def name(self, index: int) -> str:
        return self.source.name(index)

    def sample(self, generator: np.random.Generator) -> int:
        """A random image: in proportion to the weights where there are any, else uniform."""
        if self._cumulative is None:
            return int(generator.integers(len(self)))
        return int(np.searchsorted(self._cumulative, generator.random(), side="right"))

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Pixels [H, W, C] of image `index` or of the next whole one, and how many corrupt ones lie between."""
        # The replacement is a function of the index and of the files alone, not of what was met before: resuming needs
        # no memory of the corrupt files. Nothing was drawn from the generator yet, so the crop is a function of it too.
        for passed in range(len(self)):
            candidate = (index + passed) % len(self)
            if candidate not in self._reasons:
                try:
                    return self.source.load(candidate), passed
                except CorruptImageError as error:
                    self._reasons[candidate] = error.reason
            if passed + 1 > self.max_corrupt * len(self):
                met = [(index + step) % len(self) for step in range(passed + 1)]
                raise self._too_many({self.name(i): self._reasons[i] for i in met}, len(met))
        raise CorruptDataError(f"TrainImages: expected a readable image, got {len(self)} corrupt ones")

    def cut(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A random crop of an image, [size, size, C] of its type."""
        window = self._window(min(pixels.shape[:2]), generator)
        crop = cut_window(pixels, window, self.size, generator)
        return crop[:, ::-1] if self.augmentation.mirror and generator.random() < 0.5 else crop

    def _window(self, short: int, generator: np.random.Generator) -> int:
        if self.augmentation.window == "whole":
            return short
        scale = generator.uniform(self.augmentation.min_scale, 1.0)
        window = self.size / scale if self.augmentation.window == "photo" else short * scale
        return max(1, min(round(window), short))

    def replacement(self, index: int) -> int:
        """`index`, or, of a file that is known to be corrupt, the image that stands in for it."""
        following = ((index + step) % len(self) for step in range(len(self)))
        return next((candidate for candidate in following if candidate not in self._reasons), index)

    def account(self, index: int, passed: int) -> None:
        """Counts what `load(index)` met; CorruptDataError when too much of what was looked at so far is corrupt.

        Too much is more than max_corrupt of all files, or, long before those are met, a part of the files looked at
        that is clearly above max_corrupt: by four standard deviations and four files.
        """
        met = (index + np.arange(passed + 1)) % len(self)
        self._num_seen += int(np.count_nonzero(~self._seen[met]))
        self._seen[met] = True
        for corrupt in map(int, met[:-1]):
            self.corrupt[self.name(corrupt)] = self._reasons[corrupt]
        expected = self.max_corrupt * self._num_seen
        if len(self.corrupt) > min(self.max_corrupt * len(self), expected + 4 * math.sqrt(expected) + 4):
            raise self._too_many(self.corrupt, self._num_seen)

    def _too_many(self, corrupt: dict[str, str], looked_at: int) -> CorruptDataError:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(corrupt.items())[:10])
        return CorruptDataError(
            f"TrainImages: expected at most {self.max_corrupt:.2%} corrupt files of {len(self)}, got {len(corrupt)} "
            f"among {looked_at} looked at ({named}); `vqdm data check` lists them all"
        )


class EvalImages:
    """Fixed crops, in a fixed order. Strict: a corrupt file raises CorruptImageError where it is met.

    With `trained_on`, whose source this is too, it is the whole one after it instead, as in training, and is counted
    there.
    """

    def __init__(self, source: Source, size: int, crops: str, *, trained_on: "TrainImages | None" = None) -> None:
        if crops not in ("grid", "center"):
            raise ValueError(f"EvalImages: expected crops grid or center, got {crops!r}")
        self.source, self.size, self._trained_on = source, size, trained_on
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

    def thin(self, most: int) -> None:
        """Keeps at most so many of the crops, evenly spread."""
        if len(self) > most:
            self._crops = [self._crops[i] for i in np.linspace(0, len(self) - 1, most).round().astype(np.int64)]

    @property
    def description(self) -> str:
        return f"{self.source.description}, {len(self)} fixed crops of {self.size} x {self.size} pixels"

    def name(self, i: int) -> str:
        index, *position = self._crops[i]
        return self.source.name(index) + "".join(f"-{offset}" for offset in position)

    def __getitem__(self, i: int) -> Tensor:  # [C, size, size] in [-1, 1]
        crop = self._crops[i]
        pixels = self._load(crop[0])
        if len(crop) == 1:
            return to_tensor([center_crop(pixels, self.size)])[0]
        _, top, left = crop
        return to_tensor([enlarge(pixels, self.size)[top : top + self.size, left : left + self.size]])[0]

    def _load(self, index: int) -> np.ndarray:
        if self._trained_on is None:
            return self.source.load(index)
        pixels, passed = self._trained_on.load(index)
        self._trained_on.account(index, passed)
        return pixels
