"""Files and folders that neither a kill nor a power cut can leave half written under their name."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["HIDDEN", "replace_file", "sync", "sync_folder"]

HIDDEN = ".partial-"  # what carries this prefix is the rest of a save or of a deletion, and nobody's


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a hidden file beside `path`, brings it to the disk, and gives it the name in one step.

    The hidden file keeps the suffix, by which writers choose a format. Where `write` fails nothing is left of it.
    """
    partial = path.with_name(f"{HIDDEN}{path.name}")
    try:
        write(partial)
        sync(partial)
    except BaseException:  # a full disk, Ctrl-C: give the space back, then let it through
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    os.replace(partial, path)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Waits until the file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in the folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
