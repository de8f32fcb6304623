"""TensorBoard and Weights & Biases beside stats.jsonl and samples/: the same numbers and grids, for those who ask.

Both are optional packages, imported only when used. A run that goes on appends to what is there: TensorBoard hides what
a stopped run logged after its checkpoint; Weights & Biases keeps the first value of a step, and the resumed run repeats
it to the bit.
"""

import importlib.util
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vqdm_train.curve_groups import group_of
from vqdm_train.files import replace_file

__all__ = ["Tracker", "TrackingConfig", "check_installed", "open_trackers"]


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Who is told of a run beside its directory, and when the use of the codes is too low."""

    tensorboard: bool = False  # event files in the run directory's tensorboard/
    wandb: str | None = None  # a project of Weights & Biases, whose own environment (WANDB_MODE) says the rest
    usage_alarm: float = 0.05  # part of the reachable codes below which an alarm is raised; 0 for none

    def __post_init__(self) -> None:
        if self.wandb == "":
            raise ValueError("tracking: expected wandb to be the name of a project or null, got an empty string")
        if not 0 <= self.usage_alarm <= 1:
            raise ValueError(f"tracking: expected usage_alarm in [0, 1], got {self.usage_alarm}")


class Tracker(Protocol):
    """Takes what a run logs."""

    def stats(self, step: int, stats: dict[str, float]) -> None:
        """The numbers of a step."""

    def grid(self, step: int, picture: Image.Image) -> None:
        """A sample grid."""

    def close(self) -> None:
        """All is written when this returns."""


def check_installed(config: TrackingConfig) -> None:
    """Raises ValueError where a tracker that the config names is not installed."""
    for key, package in (("tensorboard", "tensorboard"), ("wandb", "wandb")):
        spec = importlib.util.find_spec(package)
        # A folder of that name in the working directory, which W&B itself makes, has a spec without an origin.
        if getattr(config, key) and (spec is None or spec.origin is None):
            raise ValueError(
                f"tracking: expected the package {package} for tracking.{key}, which is not installed; "
                f"`pip install {package}` brings it"
            )


def open_trackers(
    config: TrackingConfig,
    out: Path,  # the run directory
    settings: dict[str, Any],  # the run's config as plain data
    *,
    first_step: int,  # steps done
) -> list[Tracker]:
    """The trackers that the config names, ready for what comes after `first_step`."""
    check_installed(config)
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(_TensorBoard(out / "tensorboard", first_step))
    if config.wandb is not None:
        trackers.append(_WandB(config.wandb, out, settings))
    return trackers


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A run without a checkpoint starts anew, with the grid of step 0.
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else 0)

    def stats(self, step: int, stats: dict[str, float]) -> None:
        for key, value in stats.items():
            self.writer.add_scalar(f"{group_of(key)}/{key}", value, step)
        self.writer.flush()

    def grid(self, step: int, picture: Image.Image) -> None:
        self.writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, project: str, out: Path, settings: dict[str, Any]) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=project, name=out.resolve().name, id=_run_id(out), resume="allow", dir=str(out), config=settings
        )

    def stats(self, step: int, stats: dict[str, float]) -> None:
        self.run.log({f"{group_of(key)}/{key}": value for key, value in stats.items()}, step=step)

    def grid(self, step: int, picture: Image.Image) -> None:
        self.run.log({"samples": self.wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self.run.finish()


def _run_id(out: Path) -> str:
    """The id under which Weights & Biases knows this run directory: made at its first start, and kept in it."""
    path = out / "wandb_id.txt"
    if not path.is_file():
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", out.resolve().name)[:40]
        replace_file(path, lambda partial: partial.write_text(f"{name}-{secrets.token_hex(4)}\n"))
    return path.read_text().strip()
