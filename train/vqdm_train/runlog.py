"""What a run tells: lines or a progress bar on the terminal, stats.jsonl, sample grids.

On a terminal a progress bar stays on the last line; elsewhere (a file, a cluster's log) each logged step is one line.
"""

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor

__all__ = ["RunLog", "save_grid", "save_image"]


class RunLog:
    """Writes one JSON object per logged step, and shows progress from `first_step` to `steps`."""

    def __init__(self, out: Path, *, first_step: int, steps: int, quiet: bool = False) -> None:
        self.steps = steps
        self.quiet = quiet  # the processes of a distributed run but one
        self.bar: Any = None
        self._stats = out / "stats.jsonl"
        if quiet:
            return
        self._forget_after(first_step)
        self._file = self._stats.open("a")
        if sys.stdout.isatty():
            self.bar = click.progressbar(
                length=steps, label="training", show_pos=True, item_show_func=lambda item: item
            )
            self.bar.__enter__()
            self.bar.update(first_step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.__exit__(kind, error, trace)
        if not self.quiet:
            self._file.close()

    def step(self) -> None:
        """One more step is done."""
        if self.bar is not None:
            self.bar.update(1)

    def stats(self, stats: dict[str, Any]) -> None:
        """Logs the numbers of a step."""
        if self.quiet:
            return
        self._file.write(json.dumps(stats) + "\n")
        self._file.flush()
        line = (
            f"loss {stats['loss']:.4f}  psnr {stats['psnr_rgb']:.2f} dB  codes used {stats['utilization']:.1%}  "
            f"perplexity {stats['perplexity']:.0f}  {stats['images_per_second']:.0f} images/s"
        )
        if self.bar is not None:
            self.bar.update(0, line)
        else:
            print(f"step {stats['step']}/{self.steps}  {line}", flush=True)

    def say(self, message: str) -> None:
        """A line for people, above the progress bar where there is one."""
        if self.quiet:
            return
        if self.bar is not None:
            click.echo("\r\033[K", nl=False)  # the bar redraws itself at the next step
        print(message, flush=True)

    def _forget_after(self, step: int) -> None:
        """Drops the lines of steps that a resumed run will make again, and a line torn by a kill."""
        if not self._stats.exists():
            return
        kept = []
        for line in self._stats.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a kill in the middle of a write leaves one such line, the last
        partial = self._stats.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, self._stats)


def save_grid(
    path: Path,
    originals: Tensor,  # [B, C, H, W] in [-1, 1]
    reconstructions: Tensor,  # [B, C, H, W]
    *,
    scale: int = 2,
) -> None:
    """Writes a PNG with the originals in the upper row and their reconstructions below, `scale` times enlarged."""
    rows = [torch.cat(list(images), dim=-1) for images in (originals, reconstructions)]
    save_image(path, torch.cat(rows, dim=-2), scale=scale)


def save_image(
    path: Path,
    image: Tensor,  # [C, H, W] in [-1, 1], C = 3 or 1
    *,
    scale: int = 1,
) -> None:
    """Writes a PNG in one atomic step, each pixel `scale` times as wide and high."""
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, "PNG")
    os.replace(partial, path)
