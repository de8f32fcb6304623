"""From a file to pixels: uint8 [H, W, C], upright, with C = 1 (grey) or 3 (RGB).

What is normalised: EXIF orientation is applied; CMYK, palette, LAB and YCbCr become RGB; transparency is laid over
white; 16-bit grey v becomes round(v / 257), so that 65535 is 255; of an animation or a multi-page file the first
picture counts. Grey from colour is the BT.601 luma as Pillow rounds it; colour from grey is three equal channels.

What is refused, by CorruptImageError with the reason: a file no decoder knows, a truncated or empty one, one of more
than MAX_PIXELS (by its header, before anything is decoded), floating-point pixels (their range is unknown).
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["EXTENSIONS", "MAX_PIXELS", "CorruptImageError", "as_channels", "describe", "open_image", "read_image"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
MAX_PIXELS = 64_000_000  # 192 MB of RGB: a larger picture is an attack or a mistake, and would stall the run
# An allow-list, because some of Pillow's other readers start external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


class CorruptImageError(ValueError):
    """A file that cannot be read as a picture; `path` names it and `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"read_image: expected a readable picture, got {path}: {reason}")
        self.path = path
        self.reason = reason


def open_image(path: Path) -> Image.Image:
    """The picture with its header read, its size checked and nothing decoded yet. Close it, or use it with `with`."""
    try:
        image = Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise CorruptImageError(path, "the file is empty" if empty else "not a picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise CorruptImageError(path, f"more than {MAX_PIXELS // 10**6} Mpixel") from error
    except Exception as error:  # decoders raise whatever a damaged header leads them to: all of it means "not readable"
        raise CorruptImageError(path, describe(error)) from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise CorruptImageError(path, f"{size} pixels, more than {MAX_PIXELS // 10**6} Mpixel")
    return image


def read_image(path: Path, in_channels: int = 3) -> np.ndarray:
    """Decode one file to uint8 [H, W, in_channels].

    Raises CorruptImageError (a ValueError) for a file that is not a whole picture of at most MAX_PIXELS.
    """
    with open_image(path) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return as_channels(upright, in_channels)
        except CorruptImageError:
            raise
        except Exception as error:  # as above: the reason is kept and the file named
            raise CorruptImageError(path, describe(error)) from error


def as_channels(image: Image.Image, in_channels: int) -> np.ndarray:
    """Pixels of a decoded picture as uint8 [H, W, in_channels], whatever its mode."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode in _SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise ValueError("32-bit pixels beyond 0..65535, whose range is unknown")
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    # Everything passes RGB first, so that a CMYK picture gives the same grey as its RGB does.
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    pixels = np.asarray(image.convert("L" if in_channels == 1 else "RGB"))
    return pixels[:, :, None] if in_channels == 1 else pixels


def describe(error: Exception) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
