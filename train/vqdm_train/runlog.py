"""What a run tells: lines and a progress bar on the terminal, stats.jsonl, sample grids, and the same to its trackers.

Each logged step is one line, anywhere; on a terminal a progress bar stays below them.
"""

import json
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import click
from torch import Tensor

from vqdm_train.files import replace_file
from vqdm_train.pictures import grid_of, save_picture
from vqdm_train.trackers import Tracker

__all__ = ["RunLog"]

_RECENT = 10  # logged steps that the remaining time is estimated from


class RunLog:
    """Writes one JSON object per logged step, and shows progress from `first_step` to `steps`."""

    def __init__(
        self, out: Path, *, first_step: int, steps: int, quiet: bool = False, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.steps = steps
        self.quiet = quiet  # the processes of a distributed run but one
        self.trackers = trackers
        self.bar: Any = None
        self._out = out
        self._stats = out / "stats.jsonl"
        # Steps done and when, of this process alone: neither the pause before a resumed run nor the slow first steps of
        # a compiled model say how long the rest will take.
        self._marks = deque([(first_step, perf_counter())], maxlen=_RECENT + 1)
        if quiet:
            return
        self._forget_after(first_step)
        self._file = self._stats.open("a")
        if sys.stdout.isatty():
            self.bar = click.progressbar(
                length=steps, label="training", show_pos=True, show_eta=False, item_show_func=lambda item: item
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
        for tracker in self.trackers:
            tracker.close()

    def step(self) -> None:
        """One more step is done."""
        if self.bar is not None:
            self.bar.update(1)

    def stats(self, stats: dict[str, Any]) -> None:
        """Logs the numbers of a step: those of `Window.summary`, `step` and `lr`."""
        if self.quiet:
            return
        self._file.write(json.dumps(stats) + "\n")
        self._file.flush()
        for tracker in self.trackers:
            tracker.stats(stats["step"], {key: value for key, value in stats.items() if key != "step"})
        remaining = self._remaining(stats["step"])
        self.say(f"step {stats['step']}/{self.steps}  {_line(stats)}  {remaining}")
        if self.bar is not None:
            self.bar.update(0, remaining)

    def skipped(self, report: dict[str, Any]) -> None:
        """A line of skipped.jsonl: a step that left the weights as they are, why, and of which images."""
        if not self.quiet:
            with (self._out / "skipped.jsonl").open("a") as file:
                file.write(json.dumps(report) + "\n")

    def samples(
        self,
        step: int,
        originals: Tensor,  # [B, C, H, W] in [-1, 1]
        reconstructions: Tensor,  # [B, C, H, W]
    ) -> None:
        """Writes samples/step-*.png."""
        if self.quiet:
            return
        picture = grid_of(originals, reconstructions)
        save_picture(self._out / "samples" / f"step-{step:06d}.png", picture)
        for tracker in self.trackers:
            tracker.grid(step, picture)

    def say(self, message: str, *, by_all: bool = False) -> None:
        """A line for people, above the progress bar where there is one; of the main process, or `by_all`."""
        if self.quiet and not by_all:
            return
        if self.bar is not None:
            click.echo("\r\033[K", nl=False)  # the bar redraws itself at the next step
        # A file's name may hold bytes that are no text, which not every terminal takes.
        print(message.encode("utf-8", "backslashreplace").decode("utf-8"), flush=True)

    def _remaining(self, step: int) -> str:
        """How long the rest takes at the pace of the last logged steps, checkpoints and samples included."""
        self._marks.append((step, perf_counter()))
        (first, began), (last, now) = self._marks[0], self._marks[-1]
        return f"{duration((now - began) / (last - first) * (self.steps - last))} left"

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
        replace_file(self._stats, lambda partial: partial.write_text("".join(f"{line}\n" for line in kept)))


def _line(stats: dict[str, Any]) -> str:
    """The numbers worth a look at every logged step; all of them are in stats.jsonl."""
    parts = [
        f"loss {stats['loss']:.4f}",
        f"psnr {stats['psnr_rgb']:.2f} dB",
        f"codes used {stats['utilization']:.1%}",
        f"perplexity {stats['perplexity']:.0f}",
    ]
    if "logits_real" in stats:
        parts.append(f"logits real {stats['logits_real']:.2f} fake {stats['logits_fake']:.2f}")
    if "adaptive_weight" in stats:
        parts.append(f"adaptive weight {stats['adaptive_weight']:.3g}")
    parts += [
        f"{stats['images_per_second']:.0f} images/s",
        f"waiting {stats['data_wait_share']:.0%}",
        f"{stats['peak_memory_gib']:.1f} GiB",
    ]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """In the two largest units that matter: 2 d 3 h, 1 h 5 min, 4 min 10 s, 12 s."""
    rest = round(seconds)
    units = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        units.append((count, unit))
    first = next((i for i, (count, _) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2] if count or unit == "s")
