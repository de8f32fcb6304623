"""One process or many: reads the variables that torchrun sets, and does nothing where they are absent.

Processes wait for each other with two kinds of patience. In a training step all do the same work, so none waits longer
than the `timeout` of `init`: a process that fails or hangs ends all of them soon. Around work that the main process
does alone (saving, reading a checkpoint, evaluating) the others wait in a second group, half an hour if need be.
"""

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqdm_train.errors import StatedError

__all__ = ["World", "average_gradients", "failing_together", "finish", "init"]

PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the processes of a run: `rank` of `size`, on the accelerator that `device` names."""

    rank: int
    size: int
    device: torch.device
    patient: "dist.ProcessGroup | None" = None  # gloo, for waits of up to `PATIENCE`; None where size is 1
    store: "dist.Store | None" = None  # words between the processes, also after a collective has failed

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
        """The number that the main process has, however long it takes to find it."""
        if self.size == 1:
            return number
        agreed = torch.tensor(number, dtype=torch.int64)
        dist.broadcast(agreed, src=0, group=self.patient)
        return int(agreed)

    def barrier(self, *, patient: bool = False) -> None:
        """Waits until every process has come here; `patient` where the main process works alone before."""
        if self.size > 1:
            dist.barrier(group=self.patient if patient else None)


def init(device: str, timeout: float = 60) -> World:
    """Joins the processes that torchrun started, if it did, and chooses the device.

    Args:
        device: "auto" (a CUDA device where torch sees one, else the CPU), "cpu", "cuda" or "cuda:N". Under torchrun
            "auto" and "cuda" take the device of the local rank.
        timeout: seconds that one process waits for another in a training step. Joining is patient: programs start at
            different speeds on different hosts.

    Raises:
        ValueError: there is no such device.
        TimeoutError: a process did not join.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and (kind != "cuda" or not index.isdigit())):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {device}")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device: expected cpu, because torch {torch.__version__} sees no CUDA device, got {device}"
            )
        if chosen.index is not None and chosen.index >= torch.cuda.device_count():
            raise ValueError(f"device: expected an index below {torch.cuda.device_count()}, got {device}")
        torch.cuda.set_device(chosen)
    if size == 1:
        return World(rank=rank, size=size, device=chosen)
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = _meet(store, rank, size)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return World(rank=rank, size=size, device=chosen, patient=patient, store=store)


def _meet(store: "dist.Store", rank: int, size: int) -> "dist.Store":
    """Waits until all are here, and returns a part of the store that is theirs alone.

    torchrun's store outlives a restart, and the addresses that dead processes left there would mislead those that come
    after them: hence names that no earlier process can have used.
    """
    name = os.urandom(8).hex()
    if rank == 0:
        missing, deadline = set(range(1, size)), time.monotonic() + PATIENCE.total_seconds()
        while missing:
            for other in sorted(missing):
                if store.check([f"name/{other}"]):  # of a dead process perhaps, whom the welcome does not reach
                    store.set(f"welcome/{store.get(f'name/{other}').decode()}", name)
                if store.check([f"{name}/here/{other}"]):
                    missing.remove(other)
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {size} processes within {PATIENCE}, got none with rank {sorted(missing)}")
            time.sleep(0.05)
    else:
        store.set(f"name/{rank}", name)
        name = store.get(f"welcome/{name}").decode()  # waits for it
        store.set(f"{name}/here/{rank}", "")
    return dist.PrefixStore(name, store)


def average_gradients(module: nn.Module) -> DistributedDataParallel:
    """The module, whose backward passes give every process the mean of all processes' gradients.

    Buffers are not copied: what is in them (usage, queues, means of logits) comes out the same on all processes.
    """
    with warnings.catch_warnings():
        # Newer versions have another word for this argument, and say so; older ones do not know it.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)


def finish(world: World) -> None:
    """Leaves the process group."""
    if world.size > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def failing_together(world: World, step: Callable[[], int]) -> Iterator[None]:
    """Makes the error of one process the end of all: it says its rank, its step and the cause, and exits with code 1.

    The others then fail too, in the collective where they wait for it, and say so. A process does not try to leave the
    group in order, which would wait for those that no longer answer. The errors of a process alone pass unchanged.

    Args:
        step: gives the number of training steps done.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if world.size == 1:
            raise
        waited = isinstance(error, dist.DistError) or "gloo/transport" in str(error)
        if not waited and not isinstance(error, (ValueError, OSError, StatedError)):  # which say all in their sentence
            traceback.print_exc()
        cause = f"{type(error).__name__}: " + " ".join(str(error).split())
        place = f"rank {world.rank}, step {step()}"
        _tell(f"{place}: " + (f"another process failed or does not answer: {cause}" if waited else cause))
        with contextlib.suppress(dist.DistError):  # the process that holds the store may have been the first to go
            _exchange_last_words(world, f"{place}: {cause}", waited)
        os._exit(1)


def _exchange_last_words(world: World, words: str, waited: bool) -> None:
    """Leaves this process's words for the others; one that waited in vain looks who gave which, and who none."""
    assert world.store is not None
    world.store.set(f"last/{world.rank}", "" if waited else words)
    if not waited:
        return
    time.sleep(1)  # those that waited with it give up within moments of each other
    for rank in range(world.size):
        if not world.store.check([f"last/{rank}"]):
            _tell(f"rank {world.rank}: no word from rank {rank}")
        elif said := world.store.get(f"last/{rank}").decode():
            _tell(f"rank {world.rank} heard from {said}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
