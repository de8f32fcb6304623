"""Activation checkpointing (Chen et al. 2016): blocks that compute their activations again instead of keeping them.

The backward pass of such a block runs its forward pass once more, with the same random numbers, so that gradients are
the same to the bit; memory then holds a block's input instead of all that lies inside it.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["CheckpointedBlock"]


class CheckpointedBlock(nn.Module, ABC):
    """A block whose activations are computed again in training where `checkpoint_activations` is set."""

    checkpoint_activations: bool = False

    def forward(self, *args: Any) -> Tensor:
        """What `compute` returns."""
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            return checkpoint(self.compute, *args, use_reentrant=False)
        return self.compute(*args)

    @abstractmethod
    def compute(self, *args: Any) -> Tensor:
        """The block itself."""
