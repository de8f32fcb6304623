"""Two and four processes (gloo) with parts of the images assign codes by Sinkhorn as one process with all of them does.

Each number of ranks is started once, goes through all cases, and leaves its results in files that the tests read.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import gloo_ranks
from cases import assert_close
from vqdm_cuda.quantizers import MultiHeadQuantizer, MultiScaleQuantizer, Quantizer, SinkhornQuantizer

# How many of 6 images each rank has, step by step: equal parts, unequal ones, none.
SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(3, 3), (5, 1), (0, 6)],
    4: [(2, 2, 1, 1), (3, 0, 2, 1), (0, 0, 6, 0)],
}


def sinkhorn(code_dim: int = 4, **options: Any) -> SinkhornQuantizer:
    return SinkhornQuantizer(30, code_dim, **options)


CASES: dict[str, Any] = {
    "default": lambda: sinkhorn(),
    "squared": lambda: sinkhorn(cost="sqeuclidean", normalize="dim", num_iters=9),
    "floor": lambda: sinkhorn(floor=1e-8, loss_form="l1"),
    "sampled": lambda: sinkhorn(sample=True, eps=0.5),
    "cross entropy": lambda: sinkhorn(loss_form="ce"),
    "heads": lambda: MultiHeadQuantizer(sinkhorn(2), 2),
    "scales": lambda: MultiScaleQuantizer(sinkhorn(), (1, 2, 4)),
}


def build(name: str) -> Quantizer:
    torch.manual_seed(0)
    return CASES[name]().double()


def images(step: int) -> Tensor:  # [6, 4, 4, 4]
    return torch.randn(6, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) + step


def train_step(quantizer: Quantizer, z: Tensor, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    _, indices, loss = quantizer(z)
    maps = indices if isinstance(indices, list) else [indices]
    tokens = quantizer.encode(z)
    alone = tokens if isinstance(tokens, list) else [tokens]
    found = {f"indices {t}": i for t, i in enumerate(maps)} | {f"tokens {t}": i for t, i in enumerate(alone)}
    return {name: i.contiguous() for name, i in found.items()} | {"loss": loss.detach()}


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name in CASES:
        quantizer = build(name)
        quantizer.group = dist.group.WORLD
        for step, split in enumerate(SPLITS[num_ranks]):
            own = images(step).split(split)[rank]
            # Each rank has another random state, as in the trainer; the first one's is that of one process.
            results = train_step(quantizer, own, seed=100 * rank + step)
            out |= {f"{name}/{step}/{key}": value for key, value in results.items()}
    return out


@pytest.fixture(scope="module", params=SPLITS, ids=lambda n: f"{n} ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return gloo_ranks.run(work, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_the_ranks_have_the_indices_of_one_process(ranks: list[dict[str, Tensor]], name: str) -> None:
    quantizer = build(name)
    for step, split in enumerate(SPLITS[len(ranks)]):
        expected = train_step(quantizer, images(step), seed=step)
        assert any(not torch.equal(expected[key], expected[key.replace("indices", "tokens")]) for key in expected)
        for key, value in expected.items():
            parts = [rank[f"{name}/{step}/{key}"] for rank in ranks]
            if key != "loss":
                assert torch.equal(torch.cat(parts), value), key
            else:  # a mean over each rank's own images
                weighted = sum((n * part for n, part in zip(split, parts, strict=True)), torch.zeros(()))
                assert_close(weighted / 6, value, 1e-12)
