"""The last n feature vectors of training, first in, first out: a larger set to take statistics of than one batch.

    queue <- last n of (queue, the batch's vectors)                    then statistics of the queue

Only vectors that training has seen count, where the published code starts from n vectors of noise. Those of the batch
keep their graph, so that a loss of the statistics has its exact gradient to them; older ones are constants.

With a process group there is one queue, of the vectors of all its ranks in the order of the ranks, and every rank holds
all of it. So the ranks together equal one process with all the rows, whatever each rank's part and be it none; the
checkpoint of one rank is that of all; and DistributedDataParallel may copy buffers from the first. (The published code
has a queue on each rank, which its own loss alone sees. So has a module without `group` here, but
DistributedDataParallel then replaces it by the first rank's, unless told broadcast_buffers=False.) Where a batch is
dropped in part, its first rows go first, which over ranks may be others than in one process if the rows of a batch are
ordered by something else than images.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import all_reduce_sum

__all__ = ["FeatureQueue"]


class FeatureQueue(nn.Module):
    """`vectors` [n, d], newest last, and how many are `filled`: saved buffers, so that training goes on exactly.

    They take the module's type; in half precision they round the vectors.
    """

    def __init__(self, size: int, code_dim: int) -> None:
        super().__init__()
        self.size = size
        self.vectors: Tensor
        self.filled: Tensor
        self.register_buffer("vectors", torch.zeros(size, code_dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def joined(
        self,
        rows: Tensor,  # [N, d] of this rank
        group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        """(this rank's part [M, d] of the set that fills the queue with the rows in it, with their graph; what `admit`
        then takes in, the new vectors of all ranks).

        The parts of all ranks together are the set. Every rank of the group must call. The host waits for the number of
        vectors, so this cannot be captured in a CUDA graph, nor compiled without a break.
        """
        rank, size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        counts = _counts(rows, rank, size, group)
        before, total = sum(counts[:rank]), sum(counts)
        dropped = max(total - self.size, 0)  # of the batch itself, its first rows
        kept = rows[max(dropped - before, 0) :]
        new = kept.detach()
        if group is not None:
            at = max(before - dropped, 0)
            new = new.new_zeros(total - dropped, rows.shape[1])
            new[at : at + len(kept)] = kept.detach()
            new = all_reduce_sum(new, group)  # of each row one rank has the value and all others 0

        num_older = min(int(self.filled), self.size - len(new))
        older = self.vectors[self.size - num_older :]
        part = older[num_older * rank // size : num_older * (rank + 1) // size]
        return torch.cat([part, kept]), new  # a copy: the buffer changes with `admit`

    @torch.no_grad()
    def admit(
        self,
        new: Tensor,  # [M, d] with M <= n
    ) -> None:
        """Takes the new vectors in, for the oldest."""
        new = new.to(self.vectors.dtype)
        # One NaN would otherwise make every loss NaN for as long as it stays.
        new = new[new.isfinite().all(1)]
        self.vectors.copy_(torch.cat([self.vectors[len(new) :], new]))
        self.filled.add_(len(new)).clamp_(max=self.size)


def _counts(rows: Tensor, rank: int, size: int, group: ProcessGroup | None) -> list[int]:
    """The number of rows of each rank."""
    if group is None:
        return [rows.shape[0]]
    counts = torch.zeros(size, dtype=torch.int64, device=rows.device)
    counts[rank] = rows.shape[0]
    return all_reduce_sum(counts, group).tolist()
