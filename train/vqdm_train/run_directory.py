"""The directory of a run: whose it is, and that one process at a time works on it."""

import fcntl
import json
from pathlib import Path
from typing import IO

from vqdm_train import checkpoint
from vqdm_train.config import Config, differences
from vqdm_train.settings import apply_json

__all__ = ["open_run_directory"]


def open_run_directory(out: Path, config: Config) -> IO[str]:
    """Creates or checks the directory, clears what kills left in it, and returns the lock that keeps others out.

    Raises:
        ValueError: the directory holds something else, or a run with another config (but for `steps` and `device`), or
            is in use by another process.
    """
    saved = out / "config.json"
    if out.exists() and not saved.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"--out: expected a new folder or one that holds a run, got {out} (no config.json in it)")
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"--out: expected a run that no other process is working on, got {out}") from None
    if saved.exists():
        try:
            # What a run of an older version does not state had the default.
            changed = differences(apply_json(Config(), json.loads(saved.read_text())), config)
        except ValueError as error:
            raise ValueError(
                f"{saved}: expected the configuration of a run, got a file that is none: {error}"
            ) from None
        if changed:
            raise ValueError(
                f"{out} holds a run with another config, and only steps and device may change: {', '.join(changed)}; "
                f"`--config {saved}` goes on with its own"
            )
    for root in (out, out / "checkpoints"):
        checkpoint.clean(root)
    return lock
