"""Checkpoints that a kill at any moment cannot spoil.

A save writes everything into a hidden folder beside its target, fsyncs each file, writes `manifest.json` (sha256 and
size of every file) last, renames the folder in one atomic step, and fsyncs the directory. A folder named `step-NNNNNN`
is therefore complete, and its hashes tell whether the disk has kept it. A folder is deleted the other way round: it is
first renamed to a hidden name, so no half-deleted folder ever carries the name of a checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CheckpointConfig",
    "CorruptCheckpointError",
    "clean",
    "newest_valid",
    "replace_folder",
    "save",
    "step_of",
    "verify",
]

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d{6,})")
_HIDDEN = ".partial-"  # what carries this prefix is the rest of a save or of a deletion, and nobody's


class CorruptCheckpointError(Exception):
    """A checkpoint whose files are not those that were saved; the message names the file and what is wrong."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a run saves, and how many of its checkpoints stay."""

    save_every: int = 1000
    keep_last: int = 3

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.keep_last < 1:
            raise ValueError(
                f"checkpoint: expected save_every and keep_last >= 1, got {self.save_every} and {self.keep_last}"
            )


def save(
    root: Path,  # the run's checkpoints/ folder
    step: int,
    write: Callable[[Path], None],  # puts the files into the empty folder it is given
    *,
    keep_last: int,
) -> Path:
    """Saves `root/step-NNNNNN` and then deletes all but the newest `keep_last`; returns the folder.

    A valid checkpoint of that step that is already there stays as it is; a damaged one is replaced.
    """
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"step-{step:06d}"
    if not target.exists() or _damage(target) is not None:
        replace_folder(target, write)
    # Later steps can only be damaged ones that a resume passed over: they must not count as kept.
    for old in [folder for folder in _steps(root) if step_of(folder) <= step][keep_last:]:
        _delete(old)
    return target


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder and its manifest, then puts it under its name, in place of what has that name, if anything."""
    partial = target.parent / f"{_HIDDEN}{os.getpid()}-{target.name}"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        write(partial)
        _seal(partial)
    except BaseException:  # a full disk, Ctrl-C: give the space back, then let it through
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        _delete(target)
    os.rename(partial, target)
    _fsync_folder(target.parent)


def newest_valid(root: Path, report: Callable[[str], None]) -> Path | None:
    """The newest step folder whose hashes all hold, or None; `report` is told of each damaged one passed over."""
    for folder in _steps(root):
        damage = _damage(folder)
        if damage is None:
            return folder
        report(f"passing over a damaged checkpoint: {damage}")
    return None


def verify(folder: Path) -> None:
    """Raises CorruptCheckpointError unless the folder holds exactly the files of its manifest, byte for byte."""
    damage = _damage(folder)
    if damage is not None:
        raise CorruptCheckpointError(damage)


def clean(root: Path) -> None:
    """Removes what killed saves and deletions left in `root`. Only while no other process saves there."""
    for left in root.glob(f"{_HIDDEN}*"):
        shutil.rmtree(left)


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name states."""
    match = _STEP.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"checkpoint: expected a folder named step-NNNNNN, got {folder.name}")
    return int(match.group(1))


def _seal(folder: Path) -> None:
    """Brings every file of the folder to the disk, the manifest last."""
    files = {}
    for path in list(_files(folder)):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    with (folder / MANIFEST).open("w") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        _fsync_folder(inner)
    _fsync_folder(folder)


def _steps(root: Path) -> list[Path]:
    """The step folders, newest first."""
    folders = [path for path in root.glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name)]
    return sorted(folders, key=step_of, reverse=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        expected = {name: (entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{folder} has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder}/{MANIFEST} is not readable"
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder) if path != folder / MANIFEST}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{folder}/{name} is missing"
        if name not in expected:
            return f"{folder}/{name} is not in its manifest"
        try:
            intact = (_sha256(found[name]), found[name].stat().st_size) == expected[name]
        except OSError as error:
            return f"{folder}/{name} cannot be read ({error.strerror})"
        if not intact:
            return f"{folder}/{name} is not what was saved"
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _delete(folder: Path) -> None:
    hidden = folder.parent / f"{_HIDDEN}{os.getpid()}-old-{folder.name}"
    if hidden.exists():
        shutil.rmtree(hidden)
    os.rename(folder, hidden)
    shutil.rmtree(hidden)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
