"""The parts of a training step, and what the trainer adds to a bare loop of the same model.

    python -m bench.bench_train_step [--case demo] [--steps 20] [--device cpu|cuda] [--out bench/results]

A step is cut at the latents, at the quantised latents and at the reconstruction, and the gradient that arrives at a cut
is handed on. So the parts do what they do in a whole step, forwards and backwards, and each can be timed. The ratio
of a part is its share of the sum; data is prepared beside the step by another thread, and is not in it. The adversarial
case adds a PatchGAN discriminator: its part is its own update, and what the tokenizer hears of it is under losses.

The bare loop is `reference`: plain PyTorch with the same model, loss, optimizer and prefetched images, without averaged
weights, clipping, checks or statistics. Its steps and the trainer's take turns. The trainer logs at every step, ten
times as often as by default. `overhead` is the trainer's median over the bare loop's, less one.
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

from bench import harness
from bench.train_step_parts import Parts, build, now
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
    "demo, adversarial": Case("demo", 16, adversarial=True),
    "256 pixels": Case("optvq-imagenet-h4", 2),
}


class BareLoop:
    """What one would write without a trainer, and the tracker that lets the trainer's steps take turns with its own."""

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.tokenizer = build(config, device)
        self.optimizer = build_optimizer(self.tokenizer, config.optimizer)
        stream = TrainStream(open_train(config.data), config.batch_size, config.seed)
        self.batches = prefetch(stream, range(config.steps))
        self.ours: list[float] = []  # milliseconds
        self.bare: list[float] = []
        self.began = 0.0

    def stats(self, step: int, stats: dict[str, float]) -> None:
        """A step of the trainer is done and logged: now one without it."""
        done = now(self.device)
        self.step()
        if step > WARM_UP:
            self.ours.append(1e3 * (done - self.began))
            self.bare.append(1e3 * (now(self.device) - done))
        self.began = now(self.device)

    def grid(self, step: int, picture: Image.Image) -> None:
        """Sample grids are not timed."""

    def close(self) -> None:
        self.batches.close()

    def step(self) -> None:
        images = next(self.batches).to(self.device)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        reconstruction, quantized = self.tokenizer(images)
        loss, _ = reconstruction_loss(images, reconstruction, self.config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + quantized.loss).backward()
        self.optimizer.step()


def settings(case: Case, steps: int) -> Config:
    """The preset on the built-in photographs, logging every step; saved and sampled at the ends alone."""
    config = PRESETS[case.preset]()
    return dataclasses.replace(
        config,
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


def part_rows(case: Case, shared: dict[str, object], device: torch.device, steps: int) -> list[dict[str, object]]:
    """A row for the whole step and one for each of its parts, whose ratio is its share."""
    parts = Parts(settings(case, steps), device, case.adversarial)
    measured = [parts.step(step) for step in range(steps)][WARM_UP:]
    whole = [sum(seconds.values()) - seconds["data"] for seconds in measured]
    times = {harness.OURS: whole} | {name: [seconds[name] for seconds in measured] for name in measured[0]}
    return harness.rows(shared, {name: [1e3 * second for second in seconds] for name, seconds in times.items()})


def overhead_rows(case: Case, shared: dict[str, object], device: torch.device, steps: int) -> list[dict[str, object]]:
    """A row for the trainer's whole step and one for the bare loop's."""
    config = settings(case, steps)
    bare = BareLoop(config, device)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("vqdm_train.trainer.open_trackers", return_value=[bare]),  # a tracker hears of every step
        redirect_stdout(io.StringIO()),
    ):
        Trainer(config, Path(folder) / "run", World(rank=0, size=1, device=device)).run()
    shared = shared | {"case": f"{shared['case']}, trainer"}
    rows = harness.rows(shared, {harness.OURS: bare.ours, "reference": bare.bare})
    return [row | {"overhead": round(median(bare.ours) / median(bare.bare) - 1, 4)} for row in rows]


@click.command()
@click.option("--case", "only", type=click.Choice(list(CASES)), help="One case; all of them otherwise.")
@click.option("--steps", type=click.IntRange(WARM_UP + 1), default=20, show_default=True, help="Of each measurement.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results"), show_default=True)
def main(only: str | None, steps: int, device: str, out: Path) -> None:
    """Measure the parts of a training step, and the trainer beside a bare loop."""
    print(f"{harness.machine()}, commit {harness.commit()}, torch {torch.__version__}")
    where, results = torch.device(device), []
    for name in [only] if only else CASES:
        case = CASES[name]
        shared = common(settings(case, steps), where, name)
        rows = part_rows(case, shared, where, steps)
        threads = f"{shared['threads']} thread{'s' * (shared['threads'] != 1)}"
        harness.print_rows(f"{name}: preset {case.preset}, {case.batch_size} images a step, {threads}", rows)
        quantizer = sum(float(str(row["ratio"])) for row in rows if "quantizer" in str(row["implementation"]))
        print(f"  the quantizer, forwards and backwards: {quantizer:.1%} of the step")
        results += rows
        if not case.adversarial:
            rows = overhead_rows(case, shared, where, steps)
            harness.print_rows("  the trainer beside a bare loop", rows, "overhead", "rounds")
            results += rows
    print(f"\nwritten to {harness.write(results, out, 'train_step')}")


if __name__ == "__main__":
    main()
