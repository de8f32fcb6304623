"""What the steps between two logged ones come to: means of their terms, counts of their codes, speed, memory."""

import resource
from collections.abc import Sequence

import torch
from torch import Tensor

from vqdm_cuda import (
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    ResidualQuantizer,
    Usage,
    perplexity,
    utilization,
)
from vqdm_train.distributed import World

__all__ = ["Window"]

Indices = Tensor | list[Tensor]  # as a quantizer returns them


class Window:
    """Means of the steps since the last logged one, and exact counts of the codes they used.

    A quantizer of several scales, heads or depths is counted by each of them too. `counts`, of the last summary and of
    all processes together, holds them by name: [K] for "" (all tokens) and for scale_1, head_1, depth_1 and so on.
    """

    def __init__(self, quantizer: Quantizer, world: World) -> None:
        self.world = world
        self.counts: dict[str, Tensor] = {}
        self._quantizer = quantizer
        self._parts = _part_names(quantizer)
        self._usage = Usage(len(self._parts) * quantizer.codebook_size)  # one row of codes for each part
        self._clear()

    def _clear(self) -> None:
        self._usage.reset()
        self._sums: dict[str, Tensor] = {}
        self._times: dict[str, int] = {}  # steps that had the term: an adversarial one starts late
        self.steps = self._images = 0
        self._data_wait = self._seconds = 0.0

    def add(
        self,
        terms: dict[str, Tensor],
        indices: Sequence[Indices],  # of each micro-batch
        num_images: int,
        data_wait: float,  # seconds
        seconds: float,
    ) -> None:
        """One step that updated the weights. Every process has the same terms in the same step."""
        for name, value in terms.items():
            self._sums[name] = value.detach() + self._sums.get(name, 0)
            self._times[name] = self._times.get(name, 0) + 1
        K = self._quantizer.codebook_size
        for micro_batch in indices:
            parts = _split(self._quantizer, micro_batch)
            self._usage.update(torch.cat([part.flatten() + i * K for i, part in enumerate(parts)]))
        self.steps += 1
        self._images += num_images
        self._data_wait += data_wait
        self._seconds += seconds

    def summary(self) -> dict[str, float]:
        """The keys of stats.jsonl but step and lr, over all processes; starts the next window.

        Each term is the mean over the steps that had it. `tokens` is how many the use of the codes is counted of;
        `data_wait` is seconds per step spent waiting for images, `data_wait_share` the part of the step that this is;
        `peak_memory_gib` is the most that one process held since it started: of the GPU's memory, or resident.
        """
        local = [value.double() / self._times[name] for name, value in self._sums.items()]
        device = local[0].device
        local += [torch.tensor(t, dtype=torch.float64, device=device) for t in (self._data_wait, self._seconds)]
        *means, data_wait, seconds = self.world.mean(torch.stack(local)).tolist()
        memory = torch.tensor([[_peak_memory(self.world.device)]], dtype=torch.float64, device=device)
        self._count()
        summary = {
            **dict(zip(self._sums, means, strict=True)),
            **self._criteria(),
            "tokens": int(self.counts[""].sum()),
            "images_per_second": self._images * self.world.size / seconds,
            "data_wait": data_wait / self.steps,
            "data_wait_share": data_wait / seconds,
            "peak_memory_gib": float(self.world.gather(memory).max()),
        }
        self._clear()
        return summary

    def _count(self) -> None:
        counts = self._usage.reduce().counts.view(len(self._parts), -1).cpu()  # [parts, K]
        self.counts = {"": counts.sum(0)}
        if len(self._parts) > 1:
            self.counts |= dict(zip(self._parts, counts, strict=True))

    def _criteria(self) -> dict[str, float]:
        return {
            f"{name}_{part}" if part else name: float(criterion(counts))
            for part, counts in self.counts.items()
            for name, criterion in (("utilization", utilization), ("perplexity", perplexity))
        }


def _part_names(quantizer: Quantizer) -> list[str]:
    """What shares the codebook: scales by their size, depths and heads counted from 1; "" where nothing does."""
    if isinstance(quantizer, MultiScaleQuantizer):
        return [f"scale_{h}" if h == w else f"scale_{h}x{w}" for h, w in quantizer.scales]
    if isinstance(quantizer, ResidualQuantizer):
        return [f"depth_{i + 1}" for i in range(quantizer.depth)]
    if isinstance(quantizer, MultiHeadQuantizer):
        return [f"head_{i + 1}" for i in range(quantizer.num_heads)]
    return [""]


def _split(quantizer: Quantizer, indices: Indices) -> Sequence[Tensor]:
    """The indices of each part."""
    if isinstance(indices, list):  # of several scales
        return indices
    if isinstance(quantizer, (MultiHeadQuantizer, ResidualQuantizer)):
        heads_first = isinstance(quantizer, MultiHeadQuantizer) and quantizer.heads_first
        return indices.unbind(1 if heads_first else -1)
    return [indices]


def _peak_memory(device: torch.device) -> float:
    """GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
