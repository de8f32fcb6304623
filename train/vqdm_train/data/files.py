"""Images as files: a folder, nested or flat, or a list of paths.

A folder's files are taken by their extension (any case), sorted by their path relative to the folder; names that begin
with a dot (thumbnails, other systems' side files) are left out; linked folders are followed, each real folder once.

Splits: a folder that holds `train` and one of `val`, `validation`, `test` (looked for in this order) is split by them.
Any other folder serves whole, as training and as evaluation, and `description` says so.

A list is a text file (.txt, UTF-8) with one path per line, relative to the list's own folder; empty lines are passed
over. Its order is kept, and a path listed twice counts twice. It serves whole.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vqdm_train.data.decode import ARRAYS, PICTURES
from vqdm_train.data.encoded import image_extensions, suffix

__all__ = ["Files", "list_files", "open_folder", "open_list", "read_list", "split_folder"]

_EVAL_NAMES = ("val", "validation", "test")


class Files:
    """Encoded images on a disk, named by their paths below `root`, or whole where they lie elsewhere."""

    def __init__(self, paths: list[Path], root: Path, description: str, *, shared: bool = True) -> None:
        self.paths, self.root, self.description, self.shared = paths, root, description, shared

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        path = self.paths[index]
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()

    def open(self, index: int) -> BinaryIO:
        # Not waiting: a pipe among the files would be waited for until somebody writes to it.
        descriptor = os.open(self.paths[index], os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError("a pipe, a device or another thing that is no regular file")
        return os.fdopen(descriptor, "rb")


def open_folder(folder: Path, split: str, in_channels: int) -> Files:
    """The images of one split of a folder; ValueError where there is none."""
    root, reason = split_folder(folder, split)
    files = list_files(root)
    extensions = image_extensions((path.name for path in files), in_channels)
    paths = [path for path in files if suffix(path.name) in extensions]
    if not paths:
        shards = sum(suffix(path.name) == ".tar" for path in files)
        hint = f"; its {shards} tar files are {root}/*.tar" if shards else ""
        raise ValueError(
            f"open_dataset: expected a folder with images ({' '.join(PICTURES + ARRAYS)}), got none in {root}{hint}"
        )
    return Files(paths, root, f"{folder}: {len(paths)} images ({reason})", shared=root == folder)


def open_list(file: Path) -> Files:
    """The images that a list names; ValueError where it is empty, or where a path is no file: all of them are named."""
    paths = read_list(file)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ValueError(f"open_dataset: expected {file} to list files, got {len(missing)} that are missing: {named}")
    if not paths:
        raise ValueError(f"open_dataset: expected {file} to list one path per line, got an empty list")
    return Files(paths, file.parent, f"{file}: {len(paths)} images (a list serves training and evaluation)")


def read_list(file: Path) -> list[Path]:
    """The paths of a list, whether there is such a file or not."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"open_dataset: expected {file} to be a list of paths in UTF-8, got other bytes") from None
    return [file.parent / line.strip() for line in lines if line.strip()]


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
