"""What a run would stumble over, found before it starts: corrupt, oversized and odd files of a data set.

error    training passes over the file (and stops above 0.1 % of them), evaluation stops at it
note     the file is read, after a conversion that is worth knowing; or it is not read at all, for its extension
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from vqdm_train.data.builtin import missing_photos
from vqdm_train.data.decode import ARRAYS, PICTURES, CorruptImageError, decode, describe, open_image
from vqdm_train.data.encoded import Encoded, image_extensions, suffix
from vqdm_train.data.files import Files, list_files, read_list
from vqdm_train.data.open import open_encoded
from vqdm_train.data.shards import Shards

__all__ = ["Finding", "check_data"]

_SMALL, _LONG = 64, 4
_UNREAD_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".pgm", ".pbm", ".tga", ".psd")
_FORMAT_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # a camera's JPEG with a preview beside the picture
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm",),
}
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Finding(NamedTuple):
    """One thing about one file. `severity` is "error" or "note"."""

    path: str
    severity: str
    message: str


def check_data(data: str) -> list[Finding]:
    """Read every file of a data set as a run would (all splits), and list what is wrong or odd, in the files' order.

    Raises ValueError where `data` names no data set, and for tar shards that cannot be read at all.
    """
    if data == "builtin:photos":
        return [Finding(name, "error", "missing from the scikit-image installation") for name in missing_photos()]
    if data == "builtin:digits":
        return []
    if Path(data).is_dir():
        return list(_check_folder(Path(data)))
    if Path(data).suffix == ".txt" and Path(data).is_file():
        paths = read_list(Path(data))
        findings = list(_check_images(Files(paths, Path(data).parent, data)))
        return findings if paths else [Finding(".", "error", "an empty list")]
    images = [open_encoded(data, split, in_channels=3) for split in ("train", "eval")]
    if images[0].description == images[1].description:  # one split that serves both
        images.pop()
    return [finding for encoded in images for finding in (*_check_images(encoded), *_check_shards(encoded))]


def _check_folder(folder: Path) -> Iterator[Finding]:
    files = list_files(folder)
    for path in files:
        if suffix(path.name) in _UNREAD_PICTURES:
            message = f"not read: extension {suffix(path.name)}"
            yield Finding(path.relative_to(folder).as_posix(), "note", message)
    extensions = image_extensions((path.name for path in files), in_channels=3)
    images = [path for path in files if suffix(path.name) in extensions]
    yield from _check_images(Files(images, folder, str(folder)))
    if not images:
        yield Finding(".", "error", f"no images ({' '.join(PICTURES + ARRAYS)})")


def _check_shards(images: Encoded) -> Iterator[Finding]:
    if not isinstance(images, Shards):
        return
    for name, reason in images.left_out:
        yield Finding(name, "note", f"left out: {reason}")
    for index in range(len(images)):
        try:
            json.loads(images.text(index) or "null")
        except (ValueError, RecursionError) as error:
            yield Finding(images.name(index), "note", f"the JSON beside it cannot be read: {describe(error)}")


def _check_images(images: Encoded) -> Iterator[Finding]:
    for index in range(len(images)):
        name = images.name(index)
        try:
            with images.open(index) as file:
                for severity, message in _check_image(file, name):
                    yield Finding(name, severity, message)
        except OSError as error:
            yield Finding(name, "error", describe(error))


def _check_image(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    try:
        decode(file, name, None)
    except CorruptImageError as error:
        yield "error", error.reason
        return
    if suffix(name) in ARRAYS:
        return
    file.seek(0)
    with open_image(file, name) as image:
        try:
            for note in _oddities(image, suffix(name)):
                yield "note", note
        except Exception as error:  # the picture was read; counting further ones or their tags meets other bytes
            yield "note", f"damaged beside its first picture: {describe(error)}"


def _oddities(image: Image.Image, extension: str) -> Iterator[str]:
    expected = _FORMAT_EXTENSIONS.get(image.format or "", ())
    if extension and extension not in expected:
        yield f"named {extension}, but of format {image.format}"
    if image.mode in ("I", "I;16"):
        yield "16 bits"
    elif image.mode not in ("L", "RGB"):
        yield f"mode {image.mode}, converted"
    elif "transparency" in image.info:
        yield "transparent colour, laid over white"
    if image.getexif().get(_ORIENTATION, 1) != 1:
        yield "turned upright by its EXIF orientation"
    if getattr(image, "n_frames", 1) > 1:
        yield f"{image.n_frames} pictures, of which the first is read"  # type: ignore[attr-defined]
    short, long = sorted(image.size)
    if short < _SMALL:
        yield f"small: {image.width} x {image.height} pixels"
    if long > _LONG * short:
        yield f"long: {image.width} x {image.height} pixels"
