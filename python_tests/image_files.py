"""Pictures on a disk for the tests of vqdm_train.data: sound ones, and one of each kind that cannot be read."""

import struct
import zlib

import numpy as np
from PIL import Image


def rng(*seed):
    return np.random.default_rng(seed or 0)


def picture(height=40, width=56, channels=3, *, seed=0):
    """Smooth random colours, so that lossy formats stay close: uint8 [H, W, C]."""
    low = rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    image = Image.fromarray(low[:, :, 0] if channels == 1 else low).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[:, :, None] if channels == 1 else pixels


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)
    return path


def png_header(path, width, height, *, bits=8, colour=2):
    """A PNG that claims a size and holds almost nothing: what a decompression bomb looks like before it is decoded."""

    def chunk(kind, payload):
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
    return path


def folder_of(root, count, *, size=(20, 24)):
    for i in range(count):
        write(root / f"{i:04d}.png", picture(size[0], size[1], seed=i))
    return root


def broken(root):
    """One file of each kind that cannot be read, with a word of its reason."""
    root.mkdir(parents=True, exist_ok=True)
    noise = rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "webp", "bmp", "tif", "ppm"):
        whole = write(root / f"truncated.{suffix}", noise)
        content = whole.read_bytes()
        whole.write_bytes(content[: len(content) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "page.jpg").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    (root / "zeros.png").write_bytes(b"\0" * 4096)
    png_header(root / "bomb.png", 50_000, 50_000)
    png_header(root / "large.png", 8_001, 8_000)
    png_header(root / "hollow.png", 64, 64)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(root / "float.tif")
    Image.fromarray(noise).save(root / "animation.png", format="GIF")
    return {
        "empty.jpg": "empty",
        "page.jpg": "not a picture",
        "zeros.png": "not a picture",
        "bomb.png": "64 Mpixel",
        "large.png": "8001 x 8000 pixels, more than 64 Mpixel",
        "float.tif": "floating-point",
        "animation.png": "not a picture",
    } | {path.name: "" for path in root.glob("truncated.*")}


def crop(images, index, generator):
    """One random training crop as a run takes it, [size, size, C]."""
    pixels, passed = images.load(index)
    images.account(index, passed)
    return images.cut(pixels, generator)
