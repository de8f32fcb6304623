"""Processes of one gloo group over the loopback interface, each of which does its part of a test's work."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

Work = Callable[[int, int], dict[str, Tensor]]  # of a rank, and their number; a function of a module


def run(work: Work, num_ranks: int, folder: Path) -> list[dict[str, Tensor]]:
    """What each rank's work gave, by way of files in the folder. An error of one is the error of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        torch.multiprocessing.spawn(_one, args=(work, num_ranks, str(folder)), nprocs=num_ranks)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(num_ranks)]


def _one(rank: int, work: Work, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num_ranks)
    out = {key: value.detach().contiguous() for key, value in work(rank, num_ranks).items()}
    save_file(out, f"{folder}/rank{rank}.safetensors")
    dist.destroy_process_group()
