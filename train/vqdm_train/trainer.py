"""The training loop. `Trainer.run` reads top to bottom; what a single step does is in step.py.

Nothing random outlives a step: the batch and the generators of step n are functions of (seed, n, rank) alone. So a run
that was stopped anywhere goes on from its checkpoint (state.py) bit for bit as if it had not been.
"""

import contextlib
import math
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Subset

from vqdm_train import checkpoint
from vqdm_train.codebook import start_at_kmeans, start_at_table
from vqdm_train.config import Config
from vqdm_train.data import CorruptImageError, TrainStream, open_eval, open_train, prefetch
from vqdm_train.distributed import World
from vqdm_train.errors import StatedError
from vqdm_train.evaluate import evaluate, tokens_per_image, write_json
from vqdm_train.model import build_tokenizer
from vqdm_train.out_of_memory import saying_what_fits
from vqdm_train.run_directory import open_run_directory
from vqdm_train.runlog import RunLog
from vqdm_train.settings import to_dict
from vqdm_train.signals import StopRequest
from vqdm_train.state import TrainingState
from vqdm_train.step import Outcome, TrainingStep
from vqdm_train.trackers import check_installed, open_trackers
from vqdm_train.usage_alarm import UsageAlarm
from vqdm_train.window import Window

__all__ = ["DivergedError", "Trainer"]

_MEASURED = 2048  # held-out images of a measurement on the way; others may have to wait for it


class DivergedError(StatedError):
    """Too many steps in a row had a loss or a gradient that is not finite; the weights are those before them."""


class Trainer:
    """One run in one directory: starts it, or goes on from its newest valid checkpoint.

    Raises ValueError where the directory holds something else, or a run with another config (but for `steps` and
    `device`), or is in use by another process.
    """

    def __init__(self, config: Config, out: Path, world: World) -> None:
        self.config, self.out, self.world = config, out, world
        self.checkpoints = out / "checkpoints"
        self.stop = StopRequest(alone=world.size == 1)
        # Taken here, given back when `run` ends, or at once where the run cannot be built.
        self.lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        with contextlib.ExitStack() as on_failure:
            if world.main:
                self.lock = on_failure.enter_context(open_run_directory(out, config))
            self._build()
            on_failure.pop_all()
        world.barrier(patient=True)

    def _build(self) -> None:
        """Everything a run is made of, as it is before the first step."""
        config, world = self.config, self.world
        check_installed(config.tracking)
        self.images = open_train(config.data)
        self.held_out = open_eval(config.data, self.images)
        self.stream = TrainStream(
            self.images,
            config.batch_size,
            config.seed,
            rank=world.rank,
            world_size=world.size,
            accumulate=config.accumulate,
        )
        spread = torch.linspace(0, len(self.held_out) - 1, config.num_samples).long().unique()
        self.samples = torch.stack([self.held_out[int(i)] for i in spread]).to(world.device)  # [num_samples, C, H, W]

        torch.manual_seed(config.seed)
        tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels).to(world.device)
        if config.channels_last:
            tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not world.any(any(self.checkpoints.glob("step-*"))):  # a run that goes on takes its codes from a checkpoint
            if config.quantizer.table is not None:
                start_at_table(tokenizer, Path(config.quantizer.table))
            if config.quantizer.init == "kmeans":
                start_at_kmeans(tokenizer, self.stream, config.seed, world)
        self.state = TrainingState(tokenizer, config, world)

    def run(self) -> bool:
        """Trains to `config.steps`; True when it got there, False when a signal stopped it (after a save)."""
        with self.lock:
            return self._run()

    def _run(self) -> bool:
        config, world, state = self.config, self.world, self.state
        self._resume()
        self._introduce()
        with saying_what_fits(config, world):  # many processes run a first pass here
            training_step = TrainingStep(state, config, world)
        if world.main:  # only now: a config that cannot be built must not claim the directory
            write_json(self.out / "config.json", to_dict(config))
        trackers = (
            open_trackers(config.tracking, self.out, to_dict(config), first_step=state.step) if world.main else []
        )
        log = RunLog(self.out, first_step=state.step, steps=config.steps, quiet=not world.main, trackers=trackers)
        window = Window(state.tokenizer.quantizer, world)
        alarm = UsageAlarm(config.tracking.usage_alarm, config.quantizer)
        told_corrupt = 0  # files
        pin = world.device.type == "cuda"
        steps = range(state.step, config.steps)
        batches = prefetch(self.stream, steps, workers=config.data.workers, pin=pin)  # a pure function of the steps

        with log, self.stop.listening(), contextlib.closing(batches):
            if state.step == 0:
                self._save_samples(log)
            while state.step < config.steps and not world.any(self.stop.came):
                started = time.perf_counter()
                micro_batches = _MicroBatches(batches, config, world.device)
                with saying_what_fits(config, world):
                    outcome = training_step.run(micro_batches)
                if outcome.updated:
                    state.updates += 1
                    state.skipped_in_a_row = 0
                    seconds = time.perf_counter() - started
                    window.add(outcome.terms, outcome.indices, outcome.num_images, micro_batches.wait, seconds)
                else:
                    self._report_skipped(log, outcome)
                state.step += 1
                log.step()

                # tell, measure, show, save
                last = state.step == config.steps
                told_corrupt = self._tell_corrupt(log, told_corrupt)
                measures = config.eval_every > 0 and state.step % config.eval_every == 0
                measured = self._measure(log) if measures else {}
                if (last or measures or state.step % config.log_every == 0) and window.steps:
                    lr = state.optimizer.param_groups[0]["lr"]
                    log.stats({"step": state.step, **window.summary(), "lr": lr, **measured})
                    warning = alarm.look(window.counts)
                    if warning:
                        log.say(f"step {state.step}: {warning}")
                if last or state.step % config.sample_every == 0:
                    self._save_samples(log)
                best = measures and config.checkpoint.keep_best and state.best_step == state.step
                if last or best or state.step % config.checkpoint.save_every == 0:
                    self._save_checkpoint()
            # the end, or as far as a signal let it come
            if state.step < config.steps:
                self._save_checkpoint()
                log.say(f"stopped after step {state.step} of {config.steps}; the same command goes on from there")
            elif world.main:
                checkpoint.replace_folder(self.out / "model", state.ema.model.save_pretrained)
            world.barrier(patient=True)
        return state.step >= config.steps

    def _report_skipped(self, log: RunLog, outcome: Outcome) -> None:
        """Says why a step left the weights as they are, and of which images, on the terminal and in skipped.jsonl."""
        state, step = self.state, self.state.step
        state.skipped_in_a_row += 1
        bad = [name for name, value in outcome.terms.items() if not torch.isfinite(value)] or ["another process's loss"]
        log.say(f"step {step + 1}: weights not updated, because not finite: {', '.join(bad)} (images: skipped.jsonl)")
        everything = TrainStream(self.images, self.config.batch_size, self.config.seed)  # of all processes
        log.skipped({"step": step + 1, "not_finite": bad, "images": everything.names(step)})
        if state.skipped_in_a_row >= self.config.max_skipped_steps:
            raise DivergedError(
                f"training stopped: {state.skipped_in_a_row} steps in a row, up to step {step + 1}, had a loss or "
                f"gradient that is not finite ({', '.join(bad)}); a smaller optimizer.lr or precision=float32 may help"
            )

    def _tell_corrupt(self, log: RunLog, told: int) -> int:
        """Names each corrupt file once, when it is first passed over; returns how many were named.

        Each process names those that it met.
        """
        who = f"rank {self.world.rank}, " if self.world.size > 1 else ""
        for name, reason in list(self.images.corrupt.items())[told:]:
            log.say(
                f"{who}step {self.state.step}: passed over a corrupt image, {len(self.images.corrupt)} so far: "
                f"{name}: {reason}",
                by_all=True,
            )
        return len(self.images.corrupt)

    def _resume(self) -> None:
        """Takes everything from the newest valid checkpoint, where there is one."""
        found = checkpoint.newest_valid(self.checkpoints, print) if self.world.main else None
        step = self.world.agree(checkpoint.step_of(found) if found else -1)
        if step < 0:
            if self.world.main and any(self.checkpoints.glob("step-*")):
                raise ValueError(
                    f"{self.checkpoints}: expected at least one undamaged checkpoint, got none; "
                    "remove the folder to start anew"
                )
            return
        if step > self.config.steps:
            raise ValueError(f"--steps: expected at least {step}, the steps done already, got {self.config.steps}")
        self.state.load(self.checkpoints / f"step-{step:06d}")

    def _measure(self, log: RunLog) -> dict[str, float | None]:
        """The averaged weights on held-out images, by the main process while the others wait."""
        state, measured = self.state, {}
        if self.world.main:
            spread = torch.linspace(0, len(self.held_out) - 1, min(_MEASURED, len(self.held_out))).long().tolist()
            try:
                images: Subset[Tensor] = Subset(self.held_out, spread)  # type: ignore[arg-type]
                result, _ = evaluate(state.ema.model, images, device=self.world.device)
            except CorruptImageError as error:  # the run's end is no reason to lose the run
                log.say(f"step {state.step}: not measured: {error}")
            else:
                measured = {f"eval_{name}": result[name] for name in ("psnr_rgb", "ssim_rgb", "sharpness")}
                if (result["psnr_rgb"] or 0.0) > state.best_psnr:
                    state.best_step, state.best_psnr = state.step, result["psnr_rgb"]
        state.best_step = self.world.agree(state.best_step)  # all save it
        return measured

    def _save_checkpoint(self) -> None:
        if self.world.main:
            options = self.config.checkpoint
            keep = {self.state.best_step} if options.keep_best else set()
            checkpoint.save(self.checkpoints, self.state.step, self.state.save, keep_last=options.keep_last, keep=keep)
        self.world.barrier(patient=True)

    @torch.no_grad()
    def _save_samples(self, log: RunLog) -> None:
        """Held-out images over what the averaged weights make of them."""
        if self.world.main:
            log.samples(self.state.step, self.samples, self.state.ema.model.reconstruct(self.samples))

    def _introduce(self) -> None:
        """Says what will be done, before it is done."""
        if not self.world.main:
            return
        config, state = self.config, self.state
        tokens = tokens_per_image(state.ema.model.encode(self.samples[:1]), 1)
        bits = tokens * math.log2(config.quantizer.codebook_size)
        parameters = sum(parameter.numel() for parameter in state.tokenizer.parameters())
        lines = {
            "training": self.images.description,
            "held out": self.held_out.description,
            "model": f"{parameters:,} parameters; an image is {tokens} tokens of {config.quantizer.codebook_size} "
            f"codes, {bits:,.0f} bits",
        }
        if state.adversary is not None:
            judges = sum(p.numel() for p in state.adversary.discriminator.parameters() if p.requires_grad)
            start = config.adversarial.start_step
            first = start + config.adversarial.warmup_steps
            lines["against it"] = f"a discriminator of {judges:,} parameters, which learns from step {start + 1} and "
            lines["against it"] += f"is heard from step {first + 1}"
        if config.accumulate > 1:
            lines["micro-batches"] = f"{config.accumulate} a step; means over samples are those of the whole batch, "
            lines["micro-batches"] += "statistics of a batch (matching, moving averages, norms) those of each"
        processes = f", {self.world.size} processes" if self.world.size > 1 else ""
        lines["steps"] = (
            f"{config.steps} of {config.batch_size} images in all on {self.world.device}{processes}, {config.precision}"
            + (f", going on after step {state.step}" if state.step else "")
        )
        lines["files"] = f"{self.out}: config.json, stats.jsonl, samples/, checkpoints/, and at the end model/"
        lines["to stop"] = "Ctrl-C (or SIGTERM, SIGUSR1) saves a checkpoint; the same command goes on from it"
        print("\n".join(f"{name:<15}{text}" for name, text in lines.items()), flush=True)


class _MicroBatches(Iterator[Tensor]):
    """The micro-batches of one step, on the device; `wait` is the time that was spent waiting for them."""

    def __init__(self, batches: Generator[Tensor, None, None], config: Config, device: torch.device) -> None:
        self.wait = 0.0  # seconds
        self._batches, self._device, self._left = batches, device, config.accumulate
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format

    def __next__(self) -> Tensor:
        if self._left == 0:
            raise StopIteration
        self._left -= 1
        started = time.perf_counter()
        images = next(self._batches)
        images = images.to(self._device, non_blocking=True).contiguous(memory_format=self._format)
        self.wait += time.perf_counter() - started
        return images
