"""Cutting and resizing, on uint8 or uint16 [H, W, C] arrays; and the one way from pixels to what the model sees.

    model value = pixel / 127.5 - 1          8 bits:  0 -> -1, 255 -> 1
    model value = pixel / 32767.5 - 1       16 bits:  0 -> -1, 65535 -> 1

Every resize is Pillow's bicubic filter, which widens with the scale when it shrinks (antialiased). It works on uint8 as
it is, and on uint16 in float32, rounded and clipped to uint16. Pillow knows 1 and 3 channels; of others each is resized
alone, alpha like the rest.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqdm_train.data.decode import MAX_PIXELS

__all__ = ["center_crop", "cut_window", "enlarge", "grid_positions", "resize", "shift_positions", "to_tensor"]


def to_tensor(pixels: Sequence[np.ndarray]) -> Tensor:
    """B crops [H, W, C], each uint8 or uint16, as one float32 tensor [B, C, H, W] in [-1, 1]."""
    return torch.stack([_to_model_range(crop) for crop in pixels])


def _to_model_range(crop: np.ndarray) -> Tensor:  # [C, H, W]
    half = np.iinfo(crop.dtype).max / 2
    values = np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(values).div_(half).sub_(1.0)


def resize(
    pixels: np.ndarray,  # uint8 or uint16 [H, W, C]
    height: int,
    width: int,
) -> np.ndarray:
    """Bicubic, antialiased; the array itself where the size is right already."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return _resize_plane(pixels, height, width)
    planes = [_resize_plane(pixels[:, :, c], height, width) for c in range(pixels.shape[2])]
    return np.stack(planes, axis=2)


def _resize_plane(plane: np.ndarray, height: int, width: int) -> np.ndarray:  # what Pillow resizes at once
    exact = np.ascontiguousarray(plane, dtype=np.uint8 if plane.dtype == np.uint8 else np.float32)
    resized = np.asarray(Image.fromarray(exact).resize((width, height), Image.Resampling.BICUBIC))
    return resized if plane.dtype == np.uint8 else np.rint(resized).clip(0, 65535).astype(np.uint16)


def resize_short_side(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize so that the short side is `size`; the long side is rounded down, as torchvision does."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    new_height, new_width = int(size * height / short), int(size * width / short)
    if new_height * new_width > MAX_PIXELS:
        raise ValueError(
            f"resize: expected at most {MAX_PIXELS} pixels at short side {size}, got {new_width} x {new_height}"
        )
    return resize(pixels, new_height, new_width)


def enlarge(pixels: np.ndarray, size: int) -> np.ndarray:
    """The picture itself, or, where its short side is below `size`, the picture resized to that short side."""
    return resize_short_side(pixels, size) if min(pixels.shape[:2]) < size else pixels


def center_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Short side to `size`, then the middle [size, size]: torchvision's Resize + CenterCrop, positions included."""
    resized = resize_short_side(pixels, size)
    top, left = (round((side - size) / 2) for side in resized.shape[:2])
    return resized[top : top + size, left : left + size]


def cut_window(pixels: np.ndarray, window: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """A square of `window` pixels at a uniformly random place, resized to [size, size] where the two differ."""
    top, left = (int(generator.integers(side - window + 1)) for side in pixels.shape[:2])
    return resize(pixels[top : top + window, left : left + window], size, size)


def grid_positions(height: int, width: int, size: int, shift: tuple[int, int] = (0, 0)) -> list[tuple[int, int]]:
    """(top, left) of all whole, non-overlapping [size, size] squares of the grid that starts at `shift`."""
    return [
        (top, left)
        for top in range(shift[0], height - size + 1, size)
        for left in range(shift[1], width - size + 1, size)
    ]


def shift_positions(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """`grid_positions` at the four shifts (0, 0), (0, size/2), (size/2, 0), (size/2, size/2), in this order."""
    half = size // 2
    return [
        position
        for shift in ((0, 0), (0, half), (half, 0), (half, half))
        for position in grid_positions(height, width, size, shift)
    ]
