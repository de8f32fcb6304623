"""Checkpoints that a kill at any moment cannot spoil.

A save writes everything into a hidden folder beside its target, fsyncs each file, writes `manifest.json` (sha256 and
size of every file) last, renames the folder in one atomic step, and fsyncs the directory. A folder named `step-NNNNNN`
is therefore complete, and its hashes tell whether the disk has kept it. A folder is deleted the other way round: it is
first renamed to a hidden name, so no half-deleted folder ever carries the name of a checkpoint. Nothing is deleted
before what takes its place has its name.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from vqdm_train.errors import StatedError
from vqdm_train.files import HIDDEN, sync, sync_folder

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


class CorruptCheckpointError(StatedError):
    """A checkpoint whose files are not those that were saved; the message names the file and what is wrong."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a run saves, and which of its checkpoints stay."""

    save_every: int = 1000
    keep_last: int = 3
    keep_best: bool = True  # also the best one, however old

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
    keep: Collection[int] = (),  # steps that stay whatever their age: the best one
) -> Path:
    """Saves `root/step-NNNNNN`, then deletes all but the newest `keep_last` and those of `keep`; returns the folder.

    A valid checkpoint of that step that is already there stays as it is; a damaged one is replaced.

    Raises:
        OSError: it could not be written, as on a full disk. The checkpoints that were there are there still.
    """
    if not root.is_dir():
        root.mkdir(parents=True)
        sync_folder(root.parent)
    target = root / f"step-{step:06d}"
    if not target.is_dir() or _damage(target) is not None:
        try:
            replace_folder(target, write)
        except (OSError, SafetensorError) as error:
            before = [folder.name for folder in _steps(root) if step_of(folder) < step][:1]
            raise OSError(
                f"{target} could not be saved: {error}; "
                + (f"{before[0]} is kept, and the same command goes on from there" if before else "it was the first")
            ) from error
    # Later steps can only be damaged ones that a resume passed over: they must not count as kept.
    for old in [folder for folder in _steps(root) if step_of(folder) <= step][keep_last:]:
        if step_of(old) not in keep:
            _delete(old)
    return target


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder and its manifest, then puts it under its name, in place of what has that name, if anything."""
    partial = _hidden(target, "new")
    partial.mkdir()
    try:
        write(partial)
        _seal(partial)
    except BaseException:  # a full disk, Ctrl-C: give the space back, then let it through
        shutil.rmtree(partial, ignore_errors=True)
        raise
    old = _hidden(target, "old")
    if target.exists():
        os.rename(target, old)
    os.rename(partial, target)
    sync_folder(target.parent)
    if old.exists():
        shutil.rmtree(old)


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
    for left in root.glob(f"{HIDDEN}*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


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
        sync(path)
        files[path.relative_to(folder).as_posix()] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    sync(folder / MANIFEST)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)


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
    except OSError as error:
        return f"{folder}/{MANIFEST} cannot be read ({error.strerror})"
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
    hidden = _hidden(folder, "old")
    os.rename(folder, hidden)
    shutil.rmtree(hidden)


def _hidden(folder: Path, word: str) -> Path:
    """A hidden name beside the folder, with nothing under it."""
    hidden = folder.with_name(f"{HIDDEN}{os.getpid()}-{word}-{folder.name}")
    if hidden.exists():  # an earlier process with this number was killed
        shutil.rmtree(hidden)
    return hidden
