"""A training step without numbers: the code that a run executes, on tensors that have shapes and storages alone."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vqdm_train.config import Config
from vqdm_train.distributed import World
from vqdm_train.live_memory import LiveMemory
from vqdm_train.losses.weights import shapes_alone
from vqdm_train.model import build_tokenizer
from vqdm_train.state import TrainingState
from vqdm_train.step import Outcome, TrainingStep

__all__ = ["build_step", "dry_run", "measure_step"]


def build_step(config: Config) -> TrainingStep:
    """A step as the trainer builds it, at the end of a run, when every part is on; its tensors are on no device."""
    config = dataclasses.replace(config, compile=(), accumulate=1)  # a tensor without numbers cannot be compiled
    world = World(rank=0, size=1, device=torch.device("meta"))
    with world.device, shapes_alone():
        tokenizer = build_tokenizer(config.model, config.quantizer, config.data.in_channels)
        if config.channels_last:
            tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        state = TrainingState(tokenizer, config, world)
        step = TrainingStep(state, config, world)
    state.step = config.steps
    step.world = dataclasses.replace(world, device=torch.device("cpu"))
    return step


@contextlib.contextmanager
def dry_run(step: TrainingStep) -> Iterator[None]:
    """Meanwhile operators work on shapes alone, as on a CPU, and so do the networks of a step of `build_step`."""
    # A module cannot be moved once its tensors are fake: all are built on meta, and each is moved here, once.
    with FakeTensorMode(allow_non_fake_inputs=True), _Numbers():
        for network in _networks(step):
            for module in network.modules():
                module.to_empty(device="cpu", recurse=False)
        yield


def measure_step(step: TrainingStep, num_images: int) -> tuple[dict[str, int], int]:
    """The most bytes alive at once in either half of a step, gradients among them, beside the networks; and how many
    tokens the images have.

    Changes what a step changes but for the optimizers' part; tensors may be real or fake.
    """
    adversary, networks = step.adversary, _networks(step)
    for network in networks:
        network.zero_grad(set_to_none=True)
    step.tokenizer.train()
    known = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    outcome = Outcome()
    with LiveMemory(known) as live:
        images = _images(step.config, num_images)
        reconstruction = step.tokenizer_backward(images, 1.0, outcome, last=True)
        peaks = {"tokenizer": live.peak}
        if adversary is not None:
            live.restart_peak()
            with step.autocast():
                adversary.learn(images, reconstruction, 1.0, first=True, last=True)
            peaks["discriminator"] = live.peak
    return peaks, sum(part.numel() for indices in outcome.indices for part in _parts(indices))


class _Numbers(TorchDispatchMode):
    """What a step reads back from tensors that hold no numbers: flags are raised, masks choose all, counts are as high
    as they can be (a queue is full). Seeds may be anything."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 2**30
        if func is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
            return args[0].flatten(0, args[1][0].dim() - 1).clone()
        return func(*args, **(kwargs or {}))


def _networks(step: TrainingStep) -> list[nn.Module]:
    """Those that a step runs."""
    networks: list[nn.Module] = [step.tokenizer]
    if step.adversary is not None:
        networks.append(step.adversary.state)
    if step.perceptual is not None:
        networks.append(step.perceptual)
    return networks


def _images(config: Config, num_images: int) -> Tensor:  # [B, C, H, W]
    size = config.data.image_size
    images = torch.zeros(num_images, config.data.in_channels, size, size)
    return images.contiguous(memory_format=torch.channels_last) if config.channels_last else images


def _parts(indices: Tensor | list[Tensor]) -> list[Tensor]:
    return indices if isinstance(indices, list) else [indices]
