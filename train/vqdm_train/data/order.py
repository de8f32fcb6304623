"""The order of the images of a run, as a pure function of (seed, p).

    sample number p of the run = image at place p % N of the permutation of epoch p // N

So within an epoch every image comes once, whatever the batch size, the number of processes and of resumed runs; an
epoch may end inside a batch, and nothing is dropped or padded. A permutation of 10^7 images takes 40 MB.
"""

from threading import Lock

import numpy as np

__all__ = ["EpochOrder"]


class EpochOrder:
    """Permutations of N images, each drawn when its epoch is first asked for. Threads may share it."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images, self.seed = num_images, seed
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = Lock()

    def index(self, p: int) -> int:
        """The image of sample p >= 0."""
        epoch, place = divmod(p, self.num_images)
        with self._lock:
            if epoch not in self._epochs:
                # Batches are prepared side by side: the epoch before may still be asked for.
                self._epochs = {known: order for known, order in self._epochs.items() if abs(known - epoch) == 1}
                self._epochs[epoch] = self._permutation(epoch)
            return int(self._epochs[epoch][place])

    def _permutation(self, epoch: int) -> np.ndarray:
        # The spawn key sets these draws apart from those of the crops, which are seeded with (seed, step, position).
        generator = np.random.default_rng(np.random.SeedSequence((self.seed, epoch), spawn_key=(0,)))
        return generator.permutation(np.arange(self.num_images, dtype=np.int32))
