"""A folder of images, nested or flat.

Files are taken by their extension (any case), sorted by their path relative to the folder; names that begin with a dot
(thumbnails, other systems' side files) are left out; linked folders are followed, each real folder once.

Splits: a folder that holds `train` and one of `val`, `validation`, `test` (looked for in this order) is split by them.
Any other folder serves whole, as training and as evaluation, and `description` says so.
"""

import os
from pathlib import Path
from threading import Lock

import numpy as np

from vqdm_train.data.decode import EXTENSIONS, read_image

__all__ = ["Folder", "list_files", "split_folder"]

_EVAL_NAMES = ("val", "validation", "test")
_CACHE_BYTES = 256 * 2**20  # small data sets stay decoded; of larger ones the first images that fit, which is harmless


def list_files(folder: Path) -> list[Path]:
    """Every visible file below `folder`, sorted by relative path."""
    files: list[Path] = []
    seen = {folder.resolve()}
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        inside = []
        for name in sorted(subfolders):
            real = (Path(parent) / name).resolve()
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                inside.append(name)
        subfolders[:] = inside  # os.walk goes on into these only, which also ends loops of links
        files.extend(Path(parent) / name for name in names if not name.startswith("."))
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def split_folder(folder: Path, split: str) -> tuple[Path, str]:
    """The folder that holds a split, and a sentence that says why it is that one."""
    held_out = next((name for name in _EVAL_NAMES if (folder / name).is_dir()), None)
    if held_out is None or not (folder / "train").is_dir():
        return folder, "no train and val subfolders, so all images serve training and evaluation"
    name = "train" if split == "train" else held_out
    return folder / name, f"its subfolder {name}"


class Folder:
    """The images of one split of a folder, decoded when they are asked for."""

    def __init__(self, folder: Path, split: str, in_channels: int) -> None:
        self.root, reason = split_folder(folder, split)
        self.paths = [path for path in list_files(self.root) if path.suffix.lower() in EXTENSIONS]
        if not self.paths:
            raise ValueError(
                f"open_dataset: expected a folder with images ({' '.join(EXTENSIONS)}), got none in {self.root}"
            )
        self.description = f"{folder}: {len(self.paths)} images ({reason})"
        self._in_channels = in_channels
        self._cache: dict[int, np.ndarray] = {}
        self._cache_left = _CACHE_BYTES
        self._lock = Lock()  # prefetching threads share the cache

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index].relative_to(self.root).as_posix()

    def load(self, index: int) -> np.ndarray:
        """uint8 [H, W, C]; raises CorruptImageError."""
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        pixels = read_image(self.paths[index], self._in_channels)
        with self._lock:
            if index not in self._cache and pixels.nbytes <= self._cache_left:
                self._cache[index] = pixels
                self._cache_left -= pixels.nbytes
        return pixels
