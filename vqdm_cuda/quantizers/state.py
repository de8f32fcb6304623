"""State that training moves outside the loss, such as averages: all of it moves in a step, or none."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["move"]


def move(
    states: Sequence[tuple[Tensor, Tensor]],  # each state, and its new value in any type
    moves: Tensor,  # [] bool: whether the step counts
) -> None:
    """Copies the new values into the states, unless the step does not count or one of them is too large for its state.

    An Inf would stay in an average for good. Chosen on the device, so that the host need not wait.
    """
    narrow = [(state, new.to(state.dtype)) for state, new in states]
    for _, new in narrow:
        moves = moves & new.isfinite().all()
    for state, new in narrow:
        state.copy_(torch.where(moves, new, state))
