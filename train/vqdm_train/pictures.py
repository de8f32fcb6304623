"""Images as picture files: single ones, and the grid of samples that a run leaves behind."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vqdm_train.files import replace_file

__all__ = ["grid_of", "save_image", "save_picture"]

_LEAST_HEIGHT = 128  # pixels of a sample in a grid: smaller ones are enlarged
_DIFFERENCE = 4  # how much the difference is amplified


def grid_of(
    originals: Tensor,  # [B, C, H, W] in [-1, 1]
    reconstructions: Tensor,  # [B, C, H, W]
) -> Image.Image:
    """Three rows: the originals, their reconstructions, and four times the difference around grey.

    Small images are enlarged by a whole factor. Of images that have neither one channel nor three, the first three are
    shown (the first of two).
    """
    originals, reconstructions = (images.detach().float().cpu().clamp(-1, 1) for images in (originals, reconstructions))
    difference = _DIFFERENCE * (reconstructions - originals) / 2  # of two values 2 apart at most
    rows = [torch.cat(list(images), dim=-1) for images in (originals, reconstructions, difference)]
    return _picture(torch.cat(rows, dim=-2), scale=max(1, _LEAST_HEIGHT // originals.shape[-2]))


def save_image(
    path: Path,
    image: Tensor,  # [C, H, W] in [-1, 1]; channels as in `grid_of`
) -> None:
    """Writes a PNG in one atomic step."""
    save_picture(path, _picture(image))


def save_picture(path: Path, picture: Image.Image) -> None:
    """Writes a PNG in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, picture.save)


def _picture(
    image: Tensor,  # [C, H, W] in [-1, 1]
    scale: int = 1,
) -> Image.Image:
    """Each pixel `scale` times as wide and high."""
    shown = image[:3] if len(image) >= 3 else image[:1]
    pixels = ((shown.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
