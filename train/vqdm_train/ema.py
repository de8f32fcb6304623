"""Exponential moving average of the weights: what is evaluated, sampled and exported.

    ema <- ema + (1 - decay_n) (weight - ema),   decay_n = min(decay, (1 + n) / (10 + n)) after n updates,

so that the random initial weights are forgotten within a few steps. Buffers are copied, not averaged.
"""

import copy

import torch
from torch import Tensor

from vqdm_cuda import ImageTokenizer

__all__ = ["EMA"]


class EMA:
    """Holds `model`, an averaged copy of a tokenizer in evaluation mode, in float32 whatever the autocast."""

    def __init__(self, tokenizer: ImageTokenizer, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(tokenizer).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, tokenizer: ImageTokenizer, num_updates: int) -> None:
        """Moves the average towards the tokenizer's weights; num_updates counts the updates made before."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        average: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(average, [parameter.detach() for parameter in tokenizer.parameters()], 1 - decay)
        for kept, buffer in zip(self.model.buffers(), tokenizer.buffers(), strict=True):
            kept.copy_(buffer)
