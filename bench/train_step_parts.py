"""One training step, cut into its parts so that each can be timed: what `bench_train_step` measures."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vqdm_cuda import ImageTokenizer
from vqdm_train.config import Config
from vqdm_train.data import TrainStream, open_train
from vqdm_train.discriminators import DiscriminatorConfig, build_discriminator
from vqdm_train.ema import EMA
from vqdm_train.losses import discriminator_loss, generator_loss, reconstruction_loss
from vqdm_train.model import build_tokenizer
from vqdm_train.optimizer import build_optimizer, clip_gradients


class Parts:
    """One model and its training state; `step` makes one training step and times its parts."""

    def __init__(self, config: Config, device: torch.device, adversarial: bool) -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.tokenizer = build(config, device)
        self.optimizer = build_optimizer(self.tokenizer, config.optimizer)
        self.ema = EMA(self.tokenizer, config.ema_decay)
        self.stream = TrainStream(open_train(config.data), config.batch_size, config.seed)
        self.discriminator: nn.Module | None = None
        if adversarial:
            self.discriminator = build_discriminator(DiscriminatorConfig(), config.data.in_channels).to(device)
            self.discriminator_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=config.optimizer.lr)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of what stands inside to a part's."""
        began = now(self.device)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + now(self.device) - began

    def step(self, step: int) -> dict[str, float]:
        """Seconds of each part."""
        self.seconds = {}
        tokenizer = self.tokenizer
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
            loss, _ = reconstruction_loss(images, result, self.config.loss)
            if self.discriminator is not None:
                self.discriminator.requires_grad_(False)
                loss = loss + generator_loss(self.discriminator(result), "hinge")
            loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        with self.part("decoder backward"):
            reconstruction.backward(result.grad)
        with self.part("quantizer backward"):
            torch.autograd.backward([quantized.z_q, quantized.loss], [latents.grad, None])
        with self.part("encoder backward"):
            z.backward(features.grad)
        with self.part("optimizer"):
            clip_gradients(self.optimizer, self.config.optimizer)
            self.optimizer.step()
        with self.part("EMA"):
            self.ema.update(tokenizer, step)
        if self.discriminator is not None:
            with self.part("discriminator"):
                self.discriminator.requires_grad_(True)
                real, fake = self.discriminator(torch.cat([images, result.detach()])).chunk(2)
                self.discriminator_optimizer.zero_grad(set_to_none=True)
                discriminator_loss(real, fake, "hinge").backward()
                self.discriminator_optimizer.step()
        return self.seconds


def build(config: Config, device: torch.device) -> ImageTokenizer:
    tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels).to(device)
    if config.channels_last:
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tokenizer.train()


def cut(value: Tensor) -> Tensor:
    """The same numbers as the start of a graph of their own."""
    return value.detach().requires_grad_()


def now(device: torch.device) -> float:
    """Seconds, when all queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
