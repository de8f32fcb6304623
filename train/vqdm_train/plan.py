"""What a run needs, before it is started: parameters, tokens, memory by part, the largest batch.

All is measured on the code that a run executes, on tensors without numbers (dry_step.py): a 256-pixel preset takes
seconds, and no memory. The memory of a step is the most that is alive at once, what is kept for the backward pass and
what the backward pass makes; it grows linearly with the images.

Not counted is what operators take for themselves while they run, the CUDA context, what an allocator cannot use for
being in pieces, and, of several processes, the buckets in which they exchange gradients: `largest_batch` leaves a tenth
of the memory for these. Autocast to bfloat16 is the CPU's; a GPU's keeps norms in float32, and needs more.
"""

import math
import os
from dataclasses import dataclass

import torch
from torch import nn

from vqdm_train.config import Config
from vqdm_train.dry_step import build_step, dry_run, measure_step

__all__ = ["Plan", "device_memory", "largest_batch", "make_plan", "render"]

_USABLE = 0.9  # of the memory
_FEW, _MANY = 4, 8  # images that are measured


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All memory is in bytes, of one process; images are those that a process takes at once."""

    parameters: dict[str, int]  # by network, frozen ones too
    tokens_per_image: int
    bits_per_image: float
    memory: dict[str, int]  # by part, from the first step to the last
    # Of a step beside it, in the tokenizer's half and in the discriminator's, which follows it.
    step_memory: dict[str, int]
    step_memory_per_image: dict[str, int]

    def total(self, num_images: int) -> int:
        """All memory at the worst moment of a step."""
        halves = (self.step_memory[half] + num_images * each for half, each in self.step_memory_per_image.items())
        return sum(self.memory.values()) + max(halves)

    def largest_batch(self, memory: int) -> int:
        """How many images fit in so many bytes; 0: not one."""
        free = int(_USABLE * memory) - sum(self.memory.values())
        fits = ((free - self.step_memory[half]) // each for half, each in self.step_memory_per_image.items())
        return max(0, min(fits))


def largest_batch(config: Config, memory: int) -> int:
    """How many images a process can take at once in so many bytes; 0: not one.

    The batch of a step may be larger: times the processes, times `accumulate`.
    """
    return make_plan(config).largest_batch(memory)


def make_plan(config: Config) -> Plan:
    """The plan of one process of a run."""
    step = build_step(config)
    tokenizer, adversary = step.tokenizer, step.adversary
    with dry_run(step):
        (few, _), (many, tokens) = measure_step(step, _FEW), measure_step(step, _MANY)
    discriminator = adversary.state if adversary is not None else None
    networks = {
        "encoder": tokenizer.encoder,
        "quantizer": tokenizer.quantizer,
        "decoder": tokenizer.decoder,
        "discriminator": discriminator,
        "perceptual": step.perceptual,
    }
    memory = {
        "weights": _bytes(tokenizer),
        "optimizer": 2 * _trained_bytes(tokenizer),
        "average": _bytes(step.state.ema.model),
        "copies": _bytes(tokenizer.quantizer),  # of what a step that is not finite must take back
    }
    if discriminator is not None:
        memory["discriminator"] = _bytes(discriminator) + 2 * _trained_bytes(discriminator)
    if step.perceptual is not None:
        memory["perceptual"] = _bytes(step.perceptual)
    num_tokens = tokens // _MANY
    each = {half: (many[half] - few[half]) // (_MANY - _FEW) for half in few}
    return Plan(
        parameters={name: _parameters(network) for name, network in networks.items() if network is not None},
        tokens_per_image=num_tokens,
        bits_per_image=num_tokens * math.log2(config.quantizer.codebook_size),
        memory=memory,
        step_memory={half: few[half] - _FEW * each[half] for half in few},
        step_memory_per_image=each,
    )


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def _trained_bytes(network: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)


def render(plan: Plan, config: Config, memory: int, where: str) -> str:
    """The plan for a reader, with the largest batch for `memory` bytes of `where`."""
    size, now = config.data.image_size, config.batch_size // config.accumulate
    lines = [f"parameters          {sum(plan.parameters.values()):,}"]
    lines += [f"  {name:<18}{count:,}" for name, count in plan.parameters.items()]
    lines += [
        f"an image            {size} x {size} pixels: {plan.tokens_per_image:,} tokens of "
        f"{config.quantizer.codebook_size:,} codes, {plan.bits_per_image:,.0f} bits",
        f"memory, always      {_size(sum(plan.memory.values()))}",
    ]
    lines += [f"  {name:<18}{_size(part)}" for name, part in plan.memory.items()]
    lines.append(f"memory of a step    gradients, and what else is alive at once, in {config.precision}")
    lines += [
        f"  {half:<18}{_size(plan.step_memory[half])}, and {_size(each)} for each image"
        for half, each in plan.step_memory_per_image.items()
    ]
    lines.append(f"{f'{now} images at once':<20}{_size(plan.total(now))}, on one process")
    most = plan.largest_batch(memory)
    fits = f"{most} images at once" if most else "not one image fits"
    lines.append(f"largest batch       {fits}, in {_USABLE:.0%} of {_size(memory)} ({where})")
    return "\n".join(lines)


def _size(number: int) -> str:
    return f"{number / 2**30:,.2f} GiB" if abs(number) >= 2**30 else f"{number / 2**20:,.1f} MiB"
