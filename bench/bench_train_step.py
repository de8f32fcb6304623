"""The parts of a training step, and what the trainer adds to a bare loop of the same model.

    python -m bench.bench_train_step [--case demo] [--steps 20] [--device cpu|cuda] [--out bench/results]

A step is cut at the latents, at the quantised latents and at the reconstruction, and the gradient that arrives at a cut
is handed on. So the parts do what they do in a whole step, forwards and backwards, and each can be timed. The ratio
of a part is its share of the sum; data is prepared beside the step by another thread, and is not in it. The adversarial
case adds a PatchGAN discriminator: its part is its own update, and what the tokenizer hears of it, without the adaptive
weight, is under losses.

`reference` is a bare loop in plain PyTorch: the same model, losses, clipping, optimizer, averaged weights and
prefetched images, without checks, seeds and statistics. Its steps and the trainer's take turns; a third loop neither
clips nor averages. The trainer logs at every step, ten times as often as by default. `overhead` is the median, over
the rounds, of the trainer's time over the row's, less one.

--cpu-time counts the CPU time of the main thread, which other work on the machine disturbs little; with one thread
(OMP_NUM_THREADS=1) all parts of a step are in it.
"""

import dataclasses
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest import mock

import click
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench import harness
from bench.train_step_parts import Clock, Parts, build, clock_of
from vqdm_train.config import Config
from vqdm_train.data import TrainStream, open_train, prefetch
from vqdm_train.distributed import World
from vqdm_train.losses import reconstruction_loss
from vqdm_train.model import build_tokenizer
from vqdm_train.optimizer import build_optimizer
from vqdm_train.presets import PRESETS
from vqdm_train.trainer import Trainer

WARM_UP = 3  # steps that are not counted


class Case(NamedTuple):
    preset: str
    batch_size: int
    adversarial: bool = False


CASES = {
    "demo": Case("demo", 16),
    "demo, adversarial": Case("demo-gan", 16, adversarial=True),
    "256 pixels": Case("optvq-imagenet-h4", 2),
}


class BareLoop:
    """What one would write in plain PyTorch."""

    def __init__(self, config: Config, device: torch.device, *, clip_and_average: bool) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.clip_and_average = config, device, clip_and_average
        self.tokenizer = build(config, device)
        self.optimizer = build_optimizer(self.tokenizer, config.optimizer)
        self.average = AveragedModel(self.tokenizer, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        stream = TrainStream(open_train(config.data), config.batch_size, config.seed)
        self.batches = prefetch(stream, range(config.steps))

    def step(self) -> None:
        images = next(self.batches).to(self.device)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        reconstruction, quantized = self.tokenizer(images)
        loss, _ = reconstruction_loss(images, reconstruction, self.config.losses)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + quantized.loss).backward()
        if self.clip_and_average:
            nn.utils.clip_grad_norm_(self.tokenizer.parameters(), 1.0)
        self.optimizer.step()
        if self.clip_and_average:
            self.average.update_parameters(self.tokenizer)


class TakingTurns:
    """A tracker, which hears of every step of the trainer and then lets each bare loop make one."""

    def __init__(self, config: Config, device: torch.device, clock: Clock) -> None:
        self.clock = clock
        self.loops = {
            "reference": BareLoop(config, device, clip_and_average=True),
            "reference, without clipping and averages": BareLoop(config, device, clip_and_average=False),
        }
        self.times: dict[str, list[float]] = {name: [] for name in (harness.OURS, *self.loops)}  # milliseconds
        self.began = 0.0

    def stats(self, step: int, stats: dict[str, float]) -> None:
        """A step of the trainer is done and logged."""
        marks = [self.began, self.clock()]
        for loop in self.loops.values():
            loop.step()
            marks.append(self.clock())
        if step > WARM_UP:
            for name, began, done in zip(self.times, marks, marks[1:], strict=False):
                self.times[name].append(1e3 * (done - began))
        self.began = self.clock()

    def grid(self, step: int, picture: Image.Image) -> None:
        """Sample grids are not timed."""

    def close(self) -> None:
        for loop in self.loops.values():
            loop.batches.close()


def settings(case: Case, steps: int) -> Config:
    """The preset on the built-in photographs, logging every step; saved and sampled at the ends alone.

    Without the perceptual loss, whose weights need not be there, and but for the adversarial case without a
    discriminator, which only makes the quantizer's share larger.
    """
    config = PRESETS[case.preset]()
    weight = config.adversarial.weight if case.adversarial else 0.0
    return dataclasses.replace(
        config,
        losses=dataclasses.replace(config.losses, perceptual=0.0),
        adversarial=dataclasses.replace(config.adversarial, weight=weight),
        data=dataclasses.replace(config.data, path="builtin:photos"),
        batch_size=case.batch_size,
        steps=steps,
        log_every=1,
        sample_every=steps,
        checkpoint=dataclasses.replace(config.checkpoint, save_every=steps),
        num_samples=1,
    )


def common(config: Config, device: torch.device, name: str) -> dict[str, object]:
    """What all rows of a case say. N is the number of vectors that the codebook is searched for in a step."""
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels)
    latent = config.data.image_size // tokenizer.factor
    maps = [scale * scale for scale in config.quantizer.scales] or [latent * latent]
    return {
        "op": "train_step",
        "case": name,
        "N": config.batch_size * sum(maps) * config.quantizer.num_heads * config.quantizer.residual_depth,
        "K": config.quantizer.codebook_size,
        "d": config.model.latent_channels // config.quantizer.num_heads,
        "dtype": config.precision,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def part_rows(
    case: Case, shared: dict[str, object], device: torch.device, steps: int, clock: Clock
) -> list[dict[str, object]]:
    """A row for the whole step and one for each of its parts, whose ratio is its share."""
    parts = Parts(settings(case, steps), device, clock)
    measured = [parts.step(step) for step in range(steps)][WARM_UP:]
    whole = [sum(seconds.values()) - seconds["data"] for seconds in measured]
    times = {harness.OURS: whole} | {name: [seconds[name] for seconds in measured] for name in measured[0]}
    return harness.rows(shared, {name: [1e3 * second for second in seconds] for name, seconds in times.items()})


def overhead_rows(
    case: Case, shared: dict[str, object], device: torch.device, steps: int, clock: Clock
) -> list[dict[str, object]]:
    """A row for the trainer's whole step and one for each bare loop's."""
    config = settings(case, steps)
    turns = TakingTurns(config, device, clock)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("vqdm_train.trainer.open_trackers", return_value=[turns]),  # a tracker hears of every step
        redirect_stdout(io.StringIO()),
    ):
        Trainer(config, Path(folder) / "run", World(rank=0, size=1, device=device)).run()
    shared = shared | {"case": f"{shared['case']}, trainer"}
    rows = harness.rows(shared, turns.times)
    for row, times in zip(rows, turns.times.values(), strict=True):
        ratios = [ours / theirs for ours, theirs in zip(turns.times[harness.OURS], times, strict=True)]
        row["overhead"] = round(median(ratios) - 1, 4)
    return rows


@click.command()
@click.option("--case", "only", type=click.Choice(list(CASES)), help="One case; all of them otherwise.")
@click.option("--steps", type=click.IntRange(WARM_UP + 1), default=20, show_default=True, help="Of each measurement.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results"), show_default=True)
@click.option("--cpu-time", is_flag=True, help="CPU time in place of wall time, with one thread.")
def main(only: str | None, steps: int, device: str, out: Path, cpu_time: bool) -> None:
    """Measure the parts of a training step, and the trainer beside a bare loop."""
    print(f"{harness.machine()}, commit {harness.commit()}, torch {torch.__version__}")
    if cpu_time and (device != "cpu" or torch.get_num_threads() > 1):
        raise click.UsageError("--cpu-time: expected the CPU and one thread (OMP_NUM_THREADS=1)")
    where, results = torch.device(device), []
    clock = clock_of(where, cpu_time)
    for name in [only] if only else CASES:
        case = CASES[name]
        shared = common(settings(case, steps), where, name) | {"clock": "cpu" if cpu_time else "wall"}
        rows = part_rows(case, shared, where, steps, clock)
        threads = f"{shared['threads']} thread{'s' * (shared['threads'] != 1)}"
        harness.print_rows(f"{name}: preset {case.preset}, {case.batch_size} images a step, {threads}", rows)
        quantizer = sum(float(str(row["ratio"])) for row in rows if "quantizer" in str(row["implementation"]))
        print(f"  the quantizer, forwards and backwards: {quantizer:.1%} of the step")
        results += rows
        if not case.adversarial:
            rows = overhead_rows(case, shared, where, steps, clock)
            harness.print_rows(f"{name}: the trainer beside bare loops", rows, "overhead", "rounds")
            results += rows
    print(f"\nwritten to {harness.write(results, out, 'train_step')}")


if __name__ == "__main__":
    main()
