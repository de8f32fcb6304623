"""Encoded images, wherever they lie, and what makes a source of pixels of them.

Files on a disk (files.py), members of tar shards (shards.py) and rows of a Hugging Face data set (hub.py) differ in
where the bytes are; what is a picture, and how it is decoded, cached and refused, is the same for all of them.
"""

import posixpath
from collections.abc import Iterable
from threading import Lock
from typing import BinaryIO, Protocol

import numpy as np

from vqdm_train.data.decode import ARRAYS, PICTURES, CorruptImageError, decode, describe

__all__ = ["Decoded", "Encoded", "image_extensions", "suffix"]

_CACHE_BYTES = 256 * 2**20  # small data sets stay decoded; of larger ones the first images that fit, which is harmless


class Encoded(Protocol):
    """Images that nobody has decoded yet. `open` raises OSError; the extension of `name` says what the bytes are."""

    description: str

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def open(self, index: int) -> BinaryIO: ...


def suffix(name: str) -> str:
    """The extension of a name in lower case, its dot included."""
    return posixpath.splitext(name)[1].lower()


def image_extensions(names: Iterable[str], in_channels: int) -> tuple[str, ...]:
    """The extensions that count as images among these names: of pictures where there is one, else of arrays.

    Arrays beside pictures are as a rule something else: features, depth, labels. Channels beyond RGBA are in arrays.
    """
    return PICTURES if in_channels in (1, 3, 4) and any(suffix(name) in PICTURES for name in names) else ARRAYS


class Decoded:
    """The pixels of encoded images, decoded when they are asked for. Threads may share it."""

    def __init__(self, encoded: Encoded, in_channels: int) -> None:
        self.encoded, self.description = encoded, encoded.description
        self.in_channels = in_channels
        self._cache: dict[int, np.ndarray] = {}
        self._cache_left = _CACHE_BYTES
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.encoded)

    def name(self, index: int) -> str:
        return self.encoded.name(index)

    def load(self, index: int) -> np.ndarray:
        """uint8 or uint16 [H, W, C]; raises CorruptImageError."""
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        name = self.name(index)
        try:
            with self.encoded.open(index) as file:
                pixels = decode(file, name, self.in_channels)
        except OSError as error:
            raise CorruptImageError(name, describe(error)) from error
        with self._lock:
            if index not in self._cache and pixels.nbytes <= self._cache_left:
                self._cache[index] = pixels
                self._cache_left -= pixels.nbytes
        return pixels
