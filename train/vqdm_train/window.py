"""What the steps between two logged ones come to: means of their terms, counts of their codes, speed."""

import torch
from torch import Tensor

from vqdm_cuda import Usage
from vqdm_train.distributed import World

__all__ = ["Window"]


class Window:
    """Means of the steps since the last logged one, and exact counts of the codes they used."""

    def __init__(self, codebook_size: int, world: World) -> None:
        self.world = world
        self.usage = Usage(codebook_size)
        self._clear()

    def _clear(self) -> None:
        self.usage.reset()
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.data_wait = self.seconds = 0.0

    def add(
        self,
        terms: dict[str, Tensor],
        indices: Tensor | list[Tensor],
        num_images: int,
        data_wait: float,  # seconds
        seconds: float,
    ) -> None:
        """One step that updated the weights."""
        self.sums = {name: value.detach() + self.sums.get(name, 0) for name, value in terms.items()}
        self.usage.update(indices)
        self.steps += 1
        self.images += num_images
        self.data_wait += data_wait
        self.seconds += seconds

    def summary(self) -> dict[str, float]:
        """The keys of stats.jsonl but step and lr; `data_wait` is seconds per step spent waiting for images."""
        means = self.world.mean(torch.stack(list(self.sums.values())).double() / self.steps).tolist()
        usage = self.usage.reduce()
        summary = {
            **dict(zip(self.sums, means, strict=True)),
            "utilization": usage.utilization(),
            "perplexity": usage.perplexity(),
            "images_per_second": self.images * self.world.size / self.seconds,
            "data_wait": self.data_wait / self.steps,
        }
        self._clear()
        return summary
