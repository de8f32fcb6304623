"""What a run would stumble over, found before it starts: corrupt, oversized and odd files of a data set.

error    training passes over the file (and stops above 0.1 % of them), evaluation stops at it
note     the file is read, after a conversion that is worth knowing; or it is not read at all, for its extension
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vqdm_train.data.builtin import missing_photos
from vqdm_train.data.decode import EXTENSIONS, CorruptImageError, describe, open_image, read_image
from vqdm_train.data.folder import list_files

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

    Raises ValueError where `data` is neither a built-in data set nor a folder.
    """
    if data == "builtin:photos":
        return [Finding(name, "error", "missing from the scikit-image installation") for name in missing_photos()]
    if data == "builtin:digits":
        return []
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(f"check_data: expected builtin:photos, builtin:digits or a folder of images, got {data!r}")
    files = list_files(folder)
    findings = [
        Finding(path.relative_to(folder).as_posix(), severity, message)
        for path in files
        for severity, message in _check_file(path)
    ]
    if not any(path.suffix.lower() in EXTENSIONS for path in files):
        findings.append(Finding(".", "error", f"no images ({' '.join(EXTENSIONS)})"))
    return findings


def _check_file(path: Path) -> Iterator[tuple[str, str]]:
    suffix = path.suffix.lower()
    if suffix in _UNREAD_PICTURES:
        yield "note", f"not read: extension {suffix}"
    if suffix not in EXTENSIONS:
        return
    try:
        read_image(path)
    except CorruptImageError as error:
        yield "error", error.reason
        return
    with open_image(path) as image:
        try:
            for note in _oddities(image, suffix):
                yield "note", note
        except Exception as error:  # the picture was read; counting further ones or their tags meets other bytes
            yield "note", f"damaged beside its first picture: {describe(error)}"


def _oddities(image: Image.Image, suffix: str) -> Iterator[str]:
    expected = _FORMAT_EXTENSIONS.get(image.format or "", ())
    if suffix not in expected:
        yield f"named {suffix}, but of format {image.format}"
    if image.mode not in ("L", "RGB"):
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
