"""From an encoded picture to pixels [H, W, C], upright: uint8, or uint16 where the file holds 16 bits of grey.

What is normalised: EXIF orientation is applied; CMYK, palette, LAB and YCbCr become RGB; of an animation or a
multi-page file the first picture counts. C = 1 is grey: of colour, the BT.601 luma as Pillow rounds it. C = 3 is RGB:
of grey, three equal channels. For both, transparency is laid over white. C = 4 is RGBA: an opaque picture has full
alpha. Other C, and 16 bits of colour (of which Pillow reads 8), come from .npy arrays alone (arrays.py).

What is refused, by CorruptImageError with the reason: a file no decoder knows, a truncated or empty one, one of more
than MAX_PIXELS or MAX_BYTES (by its header, before anything is decoded), floating-point pixels (their range is
unknown).
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vqdm_train.data.arrays import read_array

__all__ = [
    "ARRAYS",
    "MAX_PIXELS",
    "PICTURES",
    "CorruptImageError",
    "as_channels",
    "decode",
    "describe",
    "open_image",
    "read_image",
]

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
ARRAYS = (".npy",)
MAX_PIXELS = 64_000_000  # a larger picture is an attack or a mistake, and would stall the run
MAX_BYTES = 256_000_000  # of decoded pixels
# An allow-list, because some of Pillow's other readers start external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


class CorruptImageError(ValueError):
    """A file that cannot be read as a picture; `path` names it and `reason` says why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"read_image: expected a readable picture, got {path}: {reason}")
        self.path = path
        self.reason = reason


def read_image(path: Path, in_channels: int = 3) -> np.ndarray:
    """One file as uint8 or uint16 [H, W, in_channels]; raises as `decode` does."""
    try:
        with path.open("rb") as file:
            return decode(file, path, in_channels)
    except OSError as error:
        raise CorruptImageError(path, describe(error)) from error


def decode(
    file: BinaryIO,
    name: Path | str,
    in_channels: int | None,  # None: RGB of a picture, as many as there are of an array
) -> np.ndarray:
    """One encoded picture or array, told apart by the name's extension, as uint8 or uint16 [H, W, in_channels].

    Raises CorruptImageError (a ValueError) for one that is not whole, too large, or without `in_channels` channels.
    """
    try:
        if Path(name).suffix.lower() in ARRAYS:
            return read_array(file, in_channels, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES)
        channels = 3 if in_channels is None else in_channels
        with open_image(file, name) as image:
            bytes_each = 2 if image.mode in _SIXTEEN_BIT else 1
            if image.width * image.height * channels * bytes_each > MAX_BYTES:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_BYTES // 10**6} MB")
            image.load()
            return as_channels(ImageOps.exif_transpose(image), channels)
    except CorruptImageError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead them to: all of it means "not readable"
        raise CorruptImageError(name, describe(error)) from error


def open_image(file: BinaryIO, name: Path | str) -> Image.Image:
    """The picture with its header read, its size checked and nothing decoded yet. Close it, or use it with `with`."""
    try:
        image = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        empty = file.seek(0, 2) == 0
        raise CorruptImageError(name, "the file is empty" if empty else "not a picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise CorruptImageError(name, f"more than {MAX_PIXELS // 10**6} Mpixel") from error
    except Exception as error:  # as above
        raise CorruptImageError(name, describe(error)) from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise CorruptImageError(name, f"{size} pixels, more than {MAX_PIXELS // 10**6} Mpixel")
    return image


def as_channels(image: Image.Image, in_channels: int) -> np.ndarray:
    """Pixels of a decoded picture as [H, W, in_channels], whatever its mode; see the head of this file."""
    if in_channels not in (1, 3, 4):
        raise ValueError(f"a picture, where {in_channels} channels were asked for, which .npy arrays alone have")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode in _SIXTEEN_BIT:
        return _sixteen_bit(np.asarray(image), in_channels)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        if in_channels == 4:
            return np.asarray(image)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Everything passes RGB first, so that a CMYK picture gives the same grey as its RGB does.
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[in_channels]))
    return pixels[:, :, None] if in_channels == 1 else pixels


def _sixteen_bit(grey: np.ndarray, in_channels: int) -> np.ndarray:
    if grey.size and (grey.min() < 0 or grey.max() > 65535):
        raise ValueError("32-bit pixels beyond 0..65535, whose range is unknown")
    wide = np.repeat(grey.astype(np.uint16)[:, :, None], in_channels, axis=2)
    if in_channels == 4:
        wide[:, :, 3] = 65535
    return wide


def describe(error: Exception) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
