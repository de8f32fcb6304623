"""One step of training: forward and backward passes of both networks over the micro-batches, and the updates.

The gradient of all losses on pictures is taken at the reconstruction first, and goes through decoder and encoder once:

    r = d(pixels + perceptual) / d reconstruction,    a = d adversarial / d reconstruction
    gradient at the reconstruction = r + weight(step) lambda a

lambda is the adaptive weight of VQGAN (Esser et al. 2021, eq. 7), |dL_r / dW| / (|dL_a / dW| + eps) at the weight W of
the decoder's last layer, of gradients averaged over the processes.

With `accumulate` micro-batches, every loss that is a mean over samples has the gradient of the whole batch. What is
made of the statistics of a batch is made of each micro-batch (of all processes): the matching loss, moving averages of
codes, batch norms, lambda.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqdm_train.config import Config
from vqdm_train.distributed import World, average_gradients
from vqdm_train.losses import PerceptualLoss, adaptive_weight, batch_psnr, reconstruction_loss
from vqdm_train.optimizer import clip_gradients, set_rates
from vqdm_train.state import TrainingState

__all__ = ["Outcome", "TrainingStep"]


@dataclass
class Outcome:
    """What one step saw: means over its micro-batches, of this process."""

    terms: dict[str, Tensor] = field(default_factory=dict)  # float32 scalars
    indices: list[Tensor | list[Tensor]] = field(default_factory=list)  # of each micro-batch
    num_images: int = 0
    updated: bool = False  # False: something was not finite, and the weights are those before


class TrainingStep:
    """Trains the networks of a state. Built once, after a checkpoint was loaded."""

    def __init__(self, state: TrainingState, config: Config, world: World) -> None:
        self.state, self.config, self.world = state, config, world
        self.perceptual = _perceptual(config).to(world.device) if config.losses.perceptual > 0 else None
        self.tokenizer = state.tokenizer
        self.adversary = state.adversary
        self.tokenizer.checkpoint_activations(config.checkpoint_activations)
        self._compile()
        self.model: nn.Module = self.tokenizer
        if world.size > 1:
            self.tokenizer.quantizer.group = torch.distributed.group.WORLD
            self.model = average_gradients(self.tokenizer)
            if self.adversary is not None:
                self.adversary.distribute()
            self._settle_order()

    def _settle_order(self) -> None:
        """One pass of which nothing is kept: DistributedDataParallel arranges gradients anew after its first one.

        The arrangement decides in which order the sums over more than two processes round. Without this pass a run that
        goes on would round its first step unlike the run that was not stopped.
        """
        config = self.config
        count, size = config.batch_size // (config.accumulate * self.world.size), config.data.image_size
        like = next(self.tokenizer.parameters())
        images = torch.zeros(count, config.data.in_channels, size, size, device=like.device, dtype=like.dtype)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        before = self._moved_by_forward()
        self.model.train()
        with self.autocast():
            reconstruction, quantized, _ = self.model(images, return_terms=True)
        (reconstruction.sum() + quantized.loss).backward()
        if self.adversary is not None:
            with self.autocast():
                self.adversary.learn(images, reconstruction.detach(), 1.0, first=True, last=True)
        for tensor, value in before:
            tensor.copy_(value)

    def _compile(self) -> None:
        """In place, so that names of parameters stay. The quantizer's kernels are compiled already."""
        parts: dict[str, nn.Module] = {"encoder": self.tokenizer.encoder, "decoder": self.tokenizer.decoder}
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual.distance
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.discriminator
        for name in self.config.compile:
            parts[name].compile()

    def run(self, batches: Iterable[Tensor]) -> Outcome:
        """The step `state.step`, from its micro-batches [B, C, H, W]; both networks are updated, or neither."""
        state, config, adversary = self.state, self.config, self.adversary
        learns = adversary is not None and adversary.learns(state.step)
        torch.manual_seed((config.seed * 1_000_003 + state.step) * self.world.size + self.world.rank)
        before = self._moved_by_forward()
        self.model.train()
        state.optimizer.zero_grad(set_to_none=True)
        if adversary is not None:
            adversary.optimizer.zero_grad(set_to_none=True)

        outcome = Outcome()
        share = 1 / config.accumulate
        for number, images in enumerate(batches, start=1):
            first, last = number == 1, number == config.accumulate
            reconstruction = self.tokenizer_backward(images, share, outcome, last=last)
            if adversary is not None and learns:
                with self.autocast():
                    terms = adversary.learn(images, reconstruction, share, first=first, last=last)
                _add(outcome.terms, terms, share)
            outcome.num_images += len(images)

        norm, codebook_norm = clip_gradients(state.optimizer, config.optimizer)
        outcome.terms |= {"gradient": norm, "codebook_gradient": codebook_norm}
        if adversary is not None and learns:
            outcome.terms["discriminator_gradient"] = adversary.clip()
        # One answer for all processes, and for both networks.
        if self.world.any(not torch.isfinite(torch.stack([t.float() for t in outcome.terms.values()])).all()):
            for tensor, value in before:
                tensor.copy_(value)
            return outcome
        set_rates(state.optimizer, state.step, config.steps, config.optimizer)
        state.optimizer.step()
        if adversary is not None and learns:
            set_rates(adversary.optimizer, state.step, config.steps, config.optimizer)
            adversary.optimizer.step()
        state.ema.update(self.tokenizer, state.updates)
        outcome.updated = True
        return outcome

    def tokenizer_backward(self, images: Tensor, share: float, outcome: Outcome, *, last: bool) -> Tensor:
        """Adds the gradients of one micro-batch to the tokenizer's; returns the reconstruction, detached."""
        config, adversary = self.config, self.adversary
        waits = not last and isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with self.autocast():
                reconstruction, quantized, terms = self.model(images, return_terms=True)
            # The losses' own graph ends here, so that it is walked once, and freed before the networks' is.
            leaf = reconstruction.detach().requires_grad_()
            loss, picture_terms = self._picture_loss(images, leaf)
            (gradient,) = torch.autograd.grad(loss, leaf)
            loss = loss.detach() + quantized.loss.detach()
            if adversary is not None and (weight := adversary.weight(self.state.step)) > 0:
                with self.autocast():
                    judged = adversary.judge(leaf)
                (pushed,) = torch.autograd.grad(judged, leaf)
                factor = torch.full_like(judged, weight)
                if config.adversarial.adaptive:
                    picture_terms["adaptive_weight"] = self._adaptive_weight(reconstruction, gradient, pushed)
                    factor = weight * picture_terms["adaptive_weight"]
                gradient = gradient + factor * pushed
                picture_terms["adversarial"] = factor * judged.detach()
                loss = loss + picture_terms["adversarial"]
            roots, gradients = [reconstruction], [share * gradient]
            if quantized.loss.requires_grad:
                roots, gradients = [*roots, quantized.loss], [*gradients, torch.full_like(quantized.loss, share)]
            torch.autograd.backward(roots, gradients)
        seen = reconstruction.detach()
        _add(outcome.terms, {"loss": loss, **picture_terms, **terms, "psnr_rgb": batch_psnr(images, seen)}, share)
        outcome.indices.append(quantized.indices)
        return seen

    def _picture_loss(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = reconstruction_loss(images, reconstruction, self.config.losses)
        if self.perceptual is not None:
            with self.autocast():
                perceptual = self.config.losses.perceptual * self.perceptual(images, reconstruction)
            loss = loss + perceptual
            terms["perceptual"] = perceptual.detach()
        return loss, terms

    def _adaptive_weight(self, reconstruction: Tensor, gradient: Tensor, pushed: Tensor) -> Tensor:
        layer = self.tokenizer.decoder.last_layer
        both = [torch.autograd.grad(reconstruction, layer, at, retain_graph=True)[0] for at in (gradient, pushed)]
        averaged = self.world.mean(torch.stack(both))
        return adaptive_weight(averaged[0], averaged[1], self.config.adversarial)

    def _moved_by_forward(self) -> list[tuple[Tensor, Tensor]]:
        """What forward passes change beside gradients (averages, queues, revived codes), with copies of it."""
        tensors = [*self.tokenizer.buffers(), *self.tokenizer.quantizer.parameters()]
        if self.adversary is not None:
            tensors += self.adversary.state.buffers()
        return [(tensor.data, tensor.detach().clone()) for tensor in tensors]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=bfloat16)


def _perceptual(config: Config) -> PerceptualLoss:
    path = config.losses.perceptual_weights
    return PerceptualLoss(config.losses.perceptual_network, None if path is None else Path(path))


def _add(sums: dict[str, Tensor], terms: dict[str, Tensor], share: float) -> None:
    """Adds the share of each term to its sum."""
    for name, value in terms.items():
        sums[name] = share * value + sums.get(name, 0)
