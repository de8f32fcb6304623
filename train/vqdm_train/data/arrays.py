"""Images of any number of channels, 8 or 16 bits each, from NumPy's .npy files: arrays [H, W, C] or [H, W].

The header is read by NumPy and holds nothing but a type, an order and a shape; the pixels are plain bytes. So such a
file can run nothing. Arrays of objects, of floating point and of other integers are refused.
"""

import math
from typing import BinaryIO

import numpy as np

__all__ = ["read_array"]

_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


def read_array(file: BinaryIO, in_channels: int | None, *, max_pixels: int, max_bytes: int) -> np.ndarray:
    """uint8 or uint16 [H, W, C]; `in_channels` None takes any C. Raises ValueError, with the reason, for another file.

    Sizes are checked by the header, before the pixels are read.
    """
    shape, fortran, dtype = _header(file)
    if dtype.newbyteorder("=") not in _TYPES:
        raise ValueError(f"an array of {dtype}, where uint8 or uint16 was expected")
    if len(shape) not in (2, 3) or min(shape) < 1:  # a negative size would read all of the file, and fit any
        raise ValueError(f"an array of shape {list(shape)}, where [H, W] or [H, W, C] was expected")
    channels = shape[2] if len(shape) == 3 else 1
    if in_channels is not None and channels != in_channels:
        raise ValueError(f"an array of {channels} channels, where {in_channels} were expected")
    size = math.prod(shape) * dtype.itemsize
    if shape[0] * shape[1] > max_pixels or size > max_bytes:
        limits = f"{max_pixels // 10**6} Mpixel or {max_bytes // 10**6} MB"
        raise ValueError(f"an array of shape {list(shape)}, more than {limits}")
    content = file.read(size)
    if len(content) < size:
        raise ValueError(f"{len(content)} bytes of pixels, where {size} were expected: truncated")
    pixels = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(pixels, dtype=dtype.newbyteorder("=")).reshape(shape[0], shape[1], channels)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    if not file.read(1):
        raise ValueError("the file is empty")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version[0]}.{version[1]} of the .npy format, where 1.0 or 2.0 was expected")
    return readers[version](file)
