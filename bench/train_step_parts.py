"""One training step, cut into its parts so that each can be timed: what `bench_train_step` measures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vqdm_cuda import ImageTokenizer
from vqdm_train.config import Config
from vqdm_train.data import TrainStream, open_train
from vqdm_train.distributed import World
from vqdm_train.losses import reconstruction_loss
from vqdm_train.model import build_tokenizer
from vqdm_train.optimizer import clip_gradients
from vqdm_train.state import TrainingState

Clock = Callable[[], float]  # seconds


class Parts:
    """One model and its training state; `step` makes one training step and times its parts."""

    def __init__(self, config: Config, device: torch.device, clock: Clock) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.clock = config, device, clock
        self.tokenizer = build(config, device)
        self.state = TrainingState(self.tokenizer, config, World(rank=0, size=1, device=device))
        self.stream = TrainStream(open_train(config.data), config.batch_size, config.seed)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of what stands inside to a part's."""
        began = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - began

    def step(self, step: int) -> dict[str, float]:
        """Seconds of each part."""
        self.seconds = {}
        tokenizer, optimizer, adversary = self.tokenizer, self.state.optimizer, self.state.adversary
        with self.part("data"):
            images = self.stream.batch(step)
        images = images.to(self.device)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.part("encoder"):
            z = tokenizer.encoder(images)
        features = cut(z)
        with self.part("quantizer"):
            quantized = tokenizer.quantizer(features)
        latents = cut(quantized.z_q)
        with self.part("decoder"):
            reconstruction = tokenizer.decoder(latents)
        result = cut(reconstruction)
        with self.part("losses"):
            loss, _ = reconstruction_loss(images, result, self.config.losses)
            if adversary is not None:
                loss = loss + self.config.adversarial.weight * adversary.judge(result)
            loss.backward()
        optimizer.zero_grad(set_to_none=True)
        with self.part("decoder backward"):
            reconstruction.backward(result.grad)
        with self.part("quantizer backward"):
            torch.autograd.backward([quantized.z_q, quantized.loss], [latents.grad, None])
        with self.part("encoder backward"):
            z.backward(features.grad)
        with self.part("optimizer"):
            clip_gradients(optimizer, self.config.optimizer)
            optimizer.step()
        with self.part("EMA"):
            self.state.ema.update(tokenizer, step)
        if adversary is not None:
            with self.part("discriminator"):
                adversary.optimizer.zero_grad(set_to_none=True)
                adversary.learn(images, result.detach(), 1.0, first=True, last=True)
                adversary.clip()
                adversary.optimizer.step()
        return self.seconds


def build(config: Config, device: torch.device) -> ImageTokenizer:
    tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels).to(device)
    if config.channels_last:
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tokenizer.train()


def cut(value: Tensor) -> Tensor:
    """The same numbers as the start of a graph of their own."""
    return value.detach().requires_grad_()


def clock_of(device: torch.device, cpu_time: bool) -> Clock:
    """Wall time when all queued work is done, or the CPU time of this thread."""
    if cpu_time:
        return time.thread_time
    if device.type == "cpu":
        return time.perf_counter

    def after_all_work() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return after_all_work
