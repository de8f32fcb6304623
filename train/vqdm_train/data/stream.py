"""Training batches as a pure function of (seed, step), so that resuming needs no memory of what was read.

Sample number p of the global batch of a step is drawn by a numpy Generator seeded with (seed, step, p): first its
image, then its crop. Rank r of R takes the samples r B / R ... (r + 1) B / R - 1, so many ranks see together what one
would.
"""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from vqdm_train.data.crops import to_tensor
from vqdm_train.data.images import TrainImages

__all__ = ["TrainStream", "prefetch"]


class TrainStream:
    """Batches of random crops.

    `batch_size` is the global one. Raises ValueError where it is no positive multiple of `world_size`, or where
    seed < 0 or rank is outside 0 ... world_size - 1.
    """

    def __init__(self, images: TrainImages, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1) -> None:
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"TrainStream: expected rank in 0 ... world_size - 1, got {rank} of {world_size}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"TrainStream: expected batch_size a positive multiple of world_size {world_size}, got {batch_size}"
            )
        if seed < 0:
            raise ValueError(f"TrainStream: expected seed >= 0, got {seed}")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        local = batch_size // world_size
        self._positions = range(rank * local, (rank + 1) * local)

    def batch(self, step: int) -> Tensor:  # [B, C, H, W] in [-1, 1], B = batch_size / world_size
        """The batch of `step` (>= 0). Raises CorruptDataError when too many files are corrupt."""
        crops = []
        for position in self._positions:
            generator = np.random.default_rng((self.seed, step, position))
            crops.append(self.images.crop_pixels(self.images.sample(generator), generator))
        return to_tensor(crops)


def prefetch(stream: TrainStream, steps: Iterable[int], *, depth: int = 2) -> Generator[Tensor, None, None]:
    """The batches of `steps` in order, the next `depth` being prepared in a background thread meanwhile.

    An error in the thread is raised at the batch it belongs to. The thread ends with the iteration, also when it is
    left early (`close()` of the generator, or its garbage collection).
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vqdm-data")
    try:
        pending: deque[Future[Tensor]] = deque()
        for step in steps:
            pending.append(pool.submit(stream.batch, step))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
