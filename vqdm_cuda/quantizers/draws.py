"""Features drawn at random, as new places for codes."""

import torch
from torch import Tensor

__all__ = ["drawn_rows"]


def drawn_rows(
    rows: Tensor,  # [N, d] with N >= 1, of all ranks
    number: int,
    seed: int,
) -> Tensor:  # [number, d]
    """Rows in a random order that hangs on the seed and N alone, each once before any comes again."""
    order = torch.randperm(rows.shape[0], device="cpu", generator=torch.Generator("cpu").manual_seed(seed))
    return rows[order[torch.arange(number, device="cpu") % rows.shape[0]].to(rows.device)]
