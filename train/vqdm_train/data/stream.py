"""Training batches as a pure function of (seed, step), so that resuming needs no memory of what was read.

Position q of the global batch of B images of a step is sample p = step B + q of the run: its image is the one that
order.py says, or, of a data set that is drawn with replacement, drawn like its crop by a numpy Generator that is seeded
with (seed, step, q). Micro-batch m of A takes the positions m B / A ... (m + 1) B / A - 1, and of those rank r of R the
r-th part: many ranks see together what one would, and at A micro-batches what A = 1 would.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vqdm_train.data.crops import to_tensor
from vqdm_train.data.images import TrainImages
from vqdm_train.data.order import EpochOrder

__all__ = ["TrainStream", "prefetch"]


class TrainStream:
    """Batches of random crops.

    `batch_size` is the global one, of all ranks and micro-batches together. Raises ValueError where it is no positive
    multiple of world_size * accumulate, or where seed < 0, accumulate < 1 or rank is outside 0 ... world_size - 1.
    """

    def __init__(
        self,
        images: TrainImages,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,  # micro-batches per step
    ) -> None:
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"TrainStream: expected rank in 0 ... world_size - 1, got {rank} of {world_size}")
        if accumulate < 1:
            raise ValueError(f"TrainStream: expected accumulate >= 1, got {accumulate}")
        if batch_size < 1 or batch_size % (world_size * accumulate):
            times = f" times accumulate {accumulate}" if accumulate > 1 else ""
            raise ValueError(
                f"TrainStream: expected batch_size a positive multiple of world_size {world_size}{times}, "
                f"got {batch_size}"
            )
        if seed < 0:
            raise ValueError(f"TrainStream: expected seed >= 0, got {seed}")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self._order = EpochOrder(len(images), seed)

    def batch(self, step: int, micro: int = 0) -> Tensor:  # [B / (A R), C, H, W] in [-1, 1]
        """Micro-batch `micro` of `step` (>= 0). Raises CorruptDataError when too many files are corrupt."""
        batch, crops = self.prepare(step, micro)
        for crop in crops:
            self.images.account(*crop())
        return batch

    def names(self, step: int, micro: int = 0) -> list[str]:
        """The names of the images of a batch, in its order; for one that is known to be corrupt, of its replacement."""
        indices = (self._draw(step, position)[0] for position in self._positions(micro))
        return [self.images.name(self.images.replacement(index)) for index in indices]

    def prepare(
        self, step: int, micro: int = 0, *, pin: bool = False
    ) -> tuple[Tensor, list[Callable[[], tuple[int, int]]]]:
        """An empty batch, and for each of its images what fills it in and returns what `TrainImages.account` takes."""
        positions = self._positions(micro)
        shape = (len(positions), self.images.in_channels, self.images.size, self.images.size)
        batch = torch.empty(shape, pin_memory=pin)
        return batch, [partial(self._fill, row, step, position) for row, position in zip(batch, positions, strict=True)]

    def _positions(self, micro: int) -> range:
        if not 0 <= micro < self.accumulate:
            raise ValueError(f"TrainStream: expected micro in 0 ... {self.accumulate - 1}, got {micro}")
        local = self.batch_size // (self.accumulate * self.world_size)
        first = (micro * self.world_size + self.rank) * local
        return range(first, first + local)

    def _draw(self, step: int, position: int) -> tuple[int, np.random.Generator]:
        """The image at a position, and the generator of its crop."""
        generator = np.random.default_rng((self.seed, step, position))
        if self.images.with_replacement:
            return self.images.sample(generator), generator
        return self._order.index(step * self.batch_size + position), generator

    def _fill(self, row: Tensor, step: int, position: int) -> tuple[int, int]:
        index, generator = self._draw(step, position)
        pixels, passed = self.images.load(index)
        row.copy_(to_tensor([self.images.cut(pixels, generator)])[0])
        return index, passed


def prefetch(
    stream: TrainStream,
    steps: Iterable[int],
    *,
    workers: int = 1,  # threads that decode and crop
    depth: int = 2,  # batches that are prepared ahead
    pin: bool = False,  # page-locked memory, from which copies to a CUDA device run beside computation
) -> Generator[Tensor, None, None]:
    """The batches of `steps` in order, each step's micro-batches one after the other, prepared in threads.

    The images of a batch are shared among the threads. An error is raised at the batch it belongs to, and corrupt files
    are counted when their batch is handed out: both are the same for any number of threads. The threads end with the
    iteration, also when it is left early (`close()` of the generator, or its garbage collection).
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vqdm-data")
    pending: deque[tuple[Tensor, list[Future[tuple[int, int]]]]] = deque()

    def finish() -> Tensor:
        batch, crops = pending.popleft()
        for crop in crops:
            stream.images.account(*crop.result())
        return batch

    try:
        for step in steps:
            for micro in range(stream.accumulate):
                batch, crops = stream.prepare(step, micro, pin=pin)
                pending.append((batch, [pool.submit(crop) for crop in crops]))
                if len(pending) > depth:
                    yield finish()
        while pending:
            yield finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
