"""The discriminator of a run: what it tells the tokenizer, and how it learns.

Two modules, two optimizers. In the tokenizer's step the discriminator is frozen: the step leaves no gradient on it. It
then learns from the same images and reconstructions, which carry no gradient to the tokenizer.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqdm_train.discriminators import augment, build_discriminator
from vqdm_train.distributed import World, average_gradients
from vqdm_train.losses import (
    AdversarialConfig,
    LeCam,
    adversarial_weight,
    consistency_loss,
    discriminator_loss,
    generator_loss,
)
from vqdm_train.optimizer import build_discriminator_optimizer, gradient_norm

if TYPE_CHECKING:
    from vqdm_train.config import Config

__all__ = ["Adversary"]


class Adversary:
    """A discriminator with its optimizer, on the device of `world`."""

    def __init__(self, config: "Config", world: World) -> None:
        self.config, self.world = config.adversarial, world
        self.grad_clip = config.discriminator_optimizer.grad_clip
        self.discriminator = build_discriminator(config.discriminator, config.data.in_channels).to(world.device)
        if config.channels_last:
            self.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.lecam = LeCam(self.config.lecam_decay).to(world.device)
        self.optimizer = build_discriminator_optimizer(self.discriminator, config.discriminator_optimizer)
        self._lesson: nn.Module = _Lesson(self.discriminator, self.lecam, self.config)

    @property
    def state(self) -> nn.ModuleDict:
        """What a checkpoint holds of it, beside the optimizer's state."""
        return nn.ModuleDict({"discriminator": self.discriminator, "lecam": self.lecam})

    def distribute(self) -> None:
        """Averages its gradients over the processes from now on."""
        self._lesson = average_gradients(self._lesson)

    def learns(self, step: int) -> bool:
        """Whether the discriminator is trained at `step`."""
        return step >= self.config.start_step

    def weight(self, step: int) -> float:
        """Of its gradient in the tokenizer's; 0 until it has learnt for a while."""
        return adversarial_weight(step, self.config)

    def judge(self, reconstruction: Tensor) -> Tensor:
        """The tokenizer's adversarial loss (scalar), before any weight."""
        with _frozen(self.discriminator):
            seen = augment(reconstruction) if self.config.augment else reconstruction
            return generator_loss(self.discriminator(seen), self.config.form)

    def learn(
        self,
        images: Tensor,  # [B, C, H, W]
        reconstruction: Tensor,  # same shape, detached
        share: float,  # of this micro-batch in the step
        *,
        first: bool,
        last: bool,
    ) -> dict[str, Tensor]:
        """Adds the gradient of `share` times the discriminator's loss to its parameters; returns detached terms.

        Spectral norms move on with the first micro-batch of a step, whatever their number; with the last one the
        processes' gradients are averaged.
        """
        self._lesson.train(first)
        waits = not last and isinstance(self._lesson, DistributedDataParallel)
        with self._lesson.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            loss, terms = self._lesson(images, reconstruction)
            (share * loss).backward()
        logits = self.world.mean(torch.stack([terms["logits_real"], terms["logits_fake"]]))
        self.lecam.update(*logits)
        return terms

    def clip(self) -> Tensor:
        """Bounds the norm of its gradient; returns it as it was."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = gradient_norm(parameters)
        if self.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        return norm


class _Lesson(nn.Module):
    """The discriminator's loss on images and reconstructions, in one forward pass, as DistributedDataParallel asks."""

    def __init__(self, discriminator: nn.Module, lecam: LeCam, config: AdversarialConfig) -> None:
        super().__init__()
        self.discriminator, self.lecam, self.config = discriminator, lecam, config

    def forward(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        pair = (images, reconstruction)
        seen = [augment(x) for x in pair] if config.augment else pair
        real, fake = (self.discriminator(x) for x in seen)
        loss = discriminator_loss(real, fake, config.form)
        terms = {
            "discriminator": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        if config.consistency > 0:
            plain = (self.discriminator(x) for x in pair)
            distances = [consistency_loss(*logits) for logits in zip(plain, (real, fake), strict=True)]
            consistency = config.consistency * (distances[0] + distances[1])
            loss = loss + consistency
            terms["consistency"] = consistency.detach()
        if config.lecam > 0:
            penalty = config.lecam * self.lecam.penalty(real, fake)
            loss = loss + penalty
            terms["lecam"] = penalty.detach()
        return loss, terms


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Its trained parameters take no gradient from what is computed meanwhile, and spectral norms do not move on."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    mode = module.training
    module.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        module.train(mode)
        for parameter in trained:
            parameter.requires_grad_(True)
