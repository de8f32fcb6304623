"""The training loop. `Trainer.run` reads top to bottom; everything a step does is there, in order.

Nothing random outlives a step: the batch and the generators of step n are functions of (seed, n, rank) alone. So the
weights, their average, the optimizer's state and the step number are all that a checkpoint holds, and a run that was
stopped anywhere goes on bit for bit as if it had not been.
"""

import contextlib
import fcntl
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqdm_cuda import ImageTokenizer, __version__
from vqdm_train import checkpoint
from vqdm_train.codebook import start_at_kmeans, start_at_table
from vqdm_train.config import Config, apply_json, differences, open_eval, open_train, to_dict
from vqdm_train.data import TrainStream, prefetch
from vqdm_train.distributed import World
from vqdm_train.ema import EMA
from vqdm_train.evaluate import tokens_per_image, write_json
from vqdm_train.losses import batch_psnr, reconstruction_loss
from vqdm_train.model import build_tokenizer
from vqdm_train.optimizer import build_optimizer, clip_gradients, load_optimizer, optimizer_tensors, schedule
from vqdm_train.runlog import RunLog
from vqdm_train.trackers import check_installed, open_trackers
from vqdm_train.usage_alarm import UsageAlarm
from vqdm_train.window import Window

__all__ = ["DivergedError", "Trainer"]


class DivergedError(Exception):
    """Too many steps in a row had a loss or a gradient that is not finite; the weights are those before them."""


class Trainer:
    """One run in one directory: starts it, or goes on from its newest valid checkpoint.

    Raises ValueError where the directory holds something else, or a run with another config (but for `steps` and
    `device`), or is in use by another process.
    """

    def __init__(self, config: Config, out: Path, world: World) -> None:
        self.config, self.out, self.world = config, out, world
        self.checkpoints = out / "checkpoints"
        self.signal: int | None = None
        # Taken here, given back when `run` ends, or at once where the run cannot be built.
        self.lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        with contextlib.ExitStack() as on_failure:
            if world.main:
                self.lock = on_failure.enter_context(_open_run_directory(out, config))
            self._build()
            if world.main:  # only now: a config that cannot be built must not claim the directory
                write_json(out / "config.json", to_dict(config))
            on_failure.pop_all()
        world.barrier()

    def _build(self) -> None:
        """Everything a run is made of, as it is before the first step."""
        config, world = self.config, self.world
        check_installed(config.tracking)
        self.images, self.held_out = open_train(config.data), open_eval(config.data)
        self.stream = TrainStream(self.images, config.batch_size, config.seed, rank=world.rank, world_size=world.size)
        spread = torch.linspace(0, len(self.held_out) - 1, config.num_samples).long().unique()
        self.samples = torch.stack([self.held_out[int(i)] for i in spread]).to(world.device)  # [num_samples, C, H, W]

        torch.manual_seed(config.seed)
        self.tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels).to(world.device)
        if config.channels_last:
            self.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not world.any(any(self.checkpoints.glob("step-*"))):  # a run that goes on takes its codes from a checkpoint
            if config.quantizer.table is not None:
                start_at_table(self.tokenizer, Path(config.quantizer.table))
            if config.quantizer.init == "kmeans":
                start_at_kmeans(self.tokenizer, self.stream, config.seed, world)
        self.ema = EMA(self.tokenizer, config.ema_decay)
        self.optimizer = build_optimizer(self.tokenizer, config.optimizer)
        self.step = 0  # steps done
        self.updates = 0  # steps done that changed the weights
        self.skipped_in_a_row = 0

    def run(self) -> bool:
        """Trains to `config.steps`; True when it got there, False when SIGINT or SIGTERM stopped it (after a save)."""
        config, world, device = self.config, self.world, self.world.device
        self._resume()
        self._introduce()
        model: nn.Module = self.tokenizer
        if world.size > 1:
            self.tokenizer.quantizer.group = torch.distributed.group.WORLD
            # Buffers (usage, the queue) come out the same on every process, and need no copying at every step.
            model = DistributedDataParallel(self.tokenizer, broadcast_buffers=False)
        model.train()
        trackers = open_trackers(config.tracking, self.out, to_dict(config), first_step=self.step) if world.main else []
        log = RunLog(self.out, first_step=self.step, steps=config.steps, quiet=not world.main, trackers=trackers)
        window = Window(self.tokenizer.quantizer, world)
        alarm = UsageAlarm(config.tracking.usage_alarm, config.quantizer)

        told_corrupt = 0  # files
        batches = prefetch(self.stream, range(self.step, config.steps))  # step -> images, a pure function

        with self.lock, log, self._catch_signals(), contextlib.closing(batches):
            if self.step == 0:
                self._save_samples(log)
            while self.step < config.steps and not world.any(self.signal is not None):
                # images, prepared in another thread
                started = time.perf_counter()
                images = next(batches).to(device)
                if config.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                data_wait = time.perf_counter() - started

                # forward and backward
                torch.manual_seed((config.seed * 1_000_003 + self.step) * world.size + world.rank)
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    reconstruction, quantized, terms = model(images, return_terms=True)
                loss, pixel_terms = reconstruction_loss(images, reconstruction, config.loss)
                loss = loss + quantized.loss
                terms = {"loss": loss.detach(), **pixel_terms, **terms}
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()

                # update, unless something is not finite: then on no process
                norm, codebook_norm = clip_gradients(self.optimizer, config.optimizer)
                terms |= {"gradient": norm, "codebook_gradient": codebook_norm}
                if world.any(not torch.isfinite(torch.stack([loss.detach(), norm, codebook_norm])).all()):
                    self._skip(log, terms)
                else:
                    factor, beta1 = schedule(self.step, config.steps, config.optimizer)
                    for group in self.optimizer.param_groups:
                        group["lr"] = factor * group["peak_lr"]
                        group["betas"] = (beta1, config.optimizer.betas[1])
                    self.optimizer.step()
                    self.ema.update(self.tokenizer, self.updates)
                    self.updates += 1
                    self.skipped_in_a_row = 0
                    terms["psnr_rgb"] = batch_psnr(images, reconstruction.detach())
                    window.add(terms, [quantized.indices], len(images), data_wait, time.perf_counter() - started)
                self.step += 1
                log.step()

                # tell, show, save
                last = self.step == config.steps
                told_corrupt = self._tell_corrupt(log, told_corrupt)
                if (last or self.step % config.log_every == 0) and window.steps:
                    lr = self.optimizer.param_groups[0]["lr"]
                    log.stats({"step": self.step, **window.summary(), "lr": lr})
                    warning = alarm.look(window.counts)
                    if warning:
                        log.say(f"step {self.step}: {warning}")
                if last or self.step % config.sample_every == 0:
                    self._save_samples(log)
                if last or self.step % config.checkpoint.save_every == 0:
                    self._save_checkpoint()
            # the end, or as far as a signal let it come
            if self.step < config.steps:
                self._save_checkpoint()
                log.say(f"stopped after step {self.step} of {config.steps}; the same command goes on from there")
            elif world.main:
                checkpoint.replace_folder(self.out / "model", self.ema.model.save_pretrained)
            world.barrier(patient=True)
        return self.step >= config.steps

    def _skip(self, log: RunLog, terms: dict[str, Tensor]) -> None:
        """Leaves the weights as they are, and says why; the batch is known by the step, `stream.batch(step)`."""
        self.skipped_in_a_row += 1
        bad = [name for name, value in terms.items() if not torch.isfinite(value)] or ["another process's loss"]
        log.say(f"step {self.step + 1}: weights not updated, because not finite: {', '.join(bad)}")
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            raise DivergedError(
                f"training stopped: {self.skipped_in_a_row} steps in a row, up to step {self.step + 1}, had a loss or "
                f"gradient that is not finite ({', '.join(bad)}); a smaller optimizer.lr or precision=float32 may help"
            )

    def _tell_corrupt(self, log: RunLog, told: int) -> int:
        """Names each corrupt file once, when it is first passed over; returns how many were named."""
        for name, reason in list(self.images.corrupt.items())[told:]:
            log.say(
                f"step {self.step}: passed over a corrupt image, {len(self.images.corrupt)} so far: {name}: {reason}"
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
        folder = self.checkpoints / f"step-{step:06d}"
        self.tokenizer.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
        self.ema.model.load_state_dict(ImageTokenizer.from_pretrained(folder / "model").state_dict())
        load_optimizer(self.optimizer, self.tokenizer, safetensors.torch.load_file(folder / "optimizer.safetensors"))
        state = json.loads((folder / "state.json").read_text())
        self.step, self.updates = state["step"], state["updates"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def _save_checkpoint(self) -> None:
        if self.world.main:
            keep_last = self.config.checkpoint.keep_last
            checkpoint.save(self.checkpoints, self.step, self._write_checkpoint, keep_last=keep_last)
        self.world.barrier(patient=True)

    def _write_checkpoint(self, folder: Path) -> None:
        self.ema.model.save_pretrained(folder / "model")
        weights = {name: value.detach().cpu().contiguous() for name, value in self.tokenizer.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "weights.safetensors")
        moments = {
            name: value.contiguous() for name, value in optimizer_tensors(self.optimizer, self.tokenizer).items()
        }
        safetensors.torch.save_file(moments, folder / "optimizer.safetensors")
        state = {
            "step": self.step,
            "updates": self.updates,
            "skipped_in_a_row": self.skipped_in_a_row,
            "vqdm_cuda": __version__,
            "torch": torch.__version__,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=1))

    @torch.no_grad()
    def _save_samples(self, log: RunLog) -> None:
        """Held-out images over what the averaged weights make of them."""
        if self.world.main:
            log.samples(self.step, self.samples, self.ema.model.reconstruct(self.samples))

    def _introduce(self) -> None:
        """Says what will be done, before it is done."""
        if not self.world.main:
            return
        config = self.config
        tokens = tokens_per_image(self.ema.model.encode(self.samples[:1]), 1)
        bits = tokens * (config.quantizer.codebook_size - 1).bit_length()
        parameters = sum(parameter.numel() for parameter in self.tokenizer.parameters())
        processes = f", {self.world.size} processes" if self.world.size > 1 else ""
        print(
            f"training    {self.images.description}\n"
            f"held out    {self.held_out.description}\n"
            f"model       {parameters:,} parameters; an image is {tokens} tokens of {config.quantizer.codebook_size} "
            f"codes, {bits} bits\n"
            f"steps       {config.steps} of {config.batch_size} images on {self.world.device}{processes}, "
            f"{config.precision}" + (f", going on after step {self.step}" if self.step else "") + "\n"
            f"files       {self.out}: config.json, stats.jsonl, samples/, checkpoints/, and at the end model/\n"
            "to stop     Ctrl-C (or SIGTERM) saves a checkpoint; the same command goes on from it",
            flush=True,
        )

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the step end and a checkpoint be saved; a second one acts at once."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

        def remember(number: int, frame: FrameType | None) -> None:
            self.signal = number
            for caught, handler in before.items():
                signal.signal(caught, handler)

        for number in before:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _open_run_directory(out: Path, config: Config) -> IO[str]:
    """Creates or checks the directory, and returns the lock that keeps other processes out."""
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
