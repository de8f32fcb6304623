"""One process or many: reads the variables that torchrun sets, and does nothing where they are absent."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["World", "finish", "init"]


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the processes of a run: `rank` of `size`, on the accelerator that `device` names."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised on one process: the same answer on all, so that all take the same branch."""
        if self.size == 1:
            return bool(flag)
        raised = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def mean(
        self,
        values: Tensor,  # [n], of this process
    ) -> Tensor:
        """The mean of each value over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def gather(
        self,
        rows: Tensor,  # [N, d], N equal on all processes
    ) -> Tensor:  # [size N, d]
        """The rows of all processes, in their order."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    def agree(self, number: int) -> int:
        """The number that the main process has."""
        if self.size == 1:
            return number
        agreed = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(agreed, src=0)
        return int(agreed)

    def barrier(self) -> None:
        """Waits until every process has come here."""
        if self.size > 1:
            dist.barrier()


def init(device: str) -> World:
    """Joins the processes that torchrun started, if it did, and chooses the device.

    Args:
        device: "auto" (a CUDA device where torch sees one, else the CPU), "cpu", "cuda" or "cuda:N". Under torchrun
            "auto" and "cuda" take the device of the local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device: expected cpu, because torch {torch.__version__} sees no CUDA device, got {device}"
            )
        if chosen.index is not None and chosen.index >= torch.cuda.device_count():
            raise ValueError(f"device: expected an index below {torch.cuda.device_count()}, got {device}")
        torch.cuda.set_device(chosen)
    if size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size)
    return World(rank=rank, size=size, device=chosen)


def finish(world: World) -> None:
    """Leaves the process group."""
    if world.size > 1:
        dist.destroy_process_group()
