"""Quantizers whose codes move outside the loss: two and four processes (gloo) train as one does, and stay equal.

Each number of ranks is started once, goes through all cases, and leaves its results in files that the tests read. A
rank's loss is a mean over its own vectors, so it counts by its share of them; the gradients of parameters are added up,
as a trainer does, before the optimizer's step.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import gloo_ranks
from cases import assert_close
from vqdm_cuda.quantizers import (
    EMAQuantizer,
    LinearQuantizer,
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    OnlineClusteringQuantizer,
    Quantizer,
    ResidualQuantizer,
)
from vqdm_cuda.quantizers.online import ANCHORS

# How many of 6 images each rank has, step by step: equal parts, unequal ones, none.
SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(3, 3), (5, 1), (0, 6)],
    4: [(2, 2, 1, 1), (3, 0, 2, 1), (0, 0, 6, 0)],
}
K, D, B = 30, 4, 6
SCALES = (1, 2, 4)


def revived() -> EMAQuantizer:
    return EMAQuantizer(K, D, revive_below=1.0, decay=0.9)


CASES: dict[str, Any] = {
    "ema": lambda: EMAQuantizer(K, D, decay=0.9, gradient="rotation"),
    "revived": revived,
    **{anchors: lambda a=anchors: OnlineClusteringQuantizer(K, D, anchors=a, decay=0.9) for anchors in ANCHORS},
    "fewer codes than ranks": lambda: OnlineClusteringQuantizer(3, D),
    "linear": lambda: LinearQuantizer(K, D, table_dim=7),
    "heads of revived": lambda: MultiHeadQuantizer(revived(), 2),
    "heads of probabilistic": lambda: MultiHeadQuantizer(OnlineClusteringQuantizer(K, D), 2),
    "heads of linear": lambda: MultiHeadQuantizer(LinearQuantizer(K, D), 2),
    "depths of ema": lambda: ResidualQuantizer(EMAQuantizer(K, D, decay=0.9, commitment_weight=1.0), 2),
    "depths of linear": lambda: ResidualQuantizer(LinearQuantizer(K, D), 2),
    "scales of ema": lambda: MultiScaleQuantizer(EMAQuantizer(K, D, decay=0.9), SCALES, num_phi=None),
    "scales of revived": lambda: MultiScaleQuantizer(revived(), SCALES, num_phi=None),
    "scales of closest": lambda: MultiScaleQuantizer(
        OnlineClusteringQuantizer(K, D, anchors="closest"), SCALES, num_phi=1
    ),
    "scales of random": lambda: MultiScaleQuantizer(OnlineClusteringQuantizer(K, D, anchors="random"), SCALES),
    "scales of probabilistic": lambda: MultiScaleQuantizer(OnlineClusteringQuantizer(K, D), SCALES),
    "scales of linear": lambda: MultiScaleQuantizer(LinearQuantizer(K, D), SCALES),
}
# Compared with one process in float64; those outside of heads between ranks in float32, too.
RUNS = [
    (name, dtype)
    for name in CASES
    for dtype in (torch.float64, torch.float32)
    if dtype == torch.float64 or not name.startswith("heads")
]


def images(q: Quantizer, step: int, dtype: torch.dtype) -> Tensor:  # [6, code_dim, 4, 4]
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(B, q.code_dim, 4, 4, dtype=torch.float64, generator=generator) + 0.2 * step).to(dtype)


@contextmanager
def rows_in_the_order_of(split: tuple[int, ...], q: Quantizer) -> Iterator[None]:
    """One process has the vectors of several scales in the order of scales; the ranks in that of ranks, then scales.

    Which vectors are drawn hangs on the order, so to compare, the one process takes that of the ranks.
    """
    if not isinstance(q, MultiScaleQuantizer):
        yield
        return
    ends = torch.tensor((0, *split)).cumsum(0).tolist()
    starts = torch.tensor([0, *(B * s * s for s in SCALES)]).cumsum(0).tolist()
    maps = [torch.arange(B * s * s).view(B, -1) + start for s, start in zip(SCALES, starts, strict=False)]
    order = torch.cat([m[a:b].flatten() for a, b in pairwise(ends) for m in maps])
    inner: Any = q.inner
    update = inner.update
    inner.update = lambda rows, indices: update(rows[order], indices[order])
    yield
    del inner.update


def train(
    name: str, dtype: torch.dtype, splits: list[tuple[int, ...]], rank: int | None
) -> Iterator[dict[str, Tensor]]:
    """Step by step: loss, gradients and state, of one rank or (None) of one process with all images."""
    torch.manual_seed(0)
    q = CASES[name]().to(dtype)
    q.group = None if rank is None else dist.group.WORLD
    optimizer = torch.optim.SGD(q.parameters(), lr=0.2) if list(q.parameters()) else None
    for step, split in enumerate(splits):
        torch.manual_seed(step if rank in (None, 0) else 100 + step)  # the first rank's draws are those of all
        whole = images(q, step, dtype)
        z = (whole if rank is None else whole.split(split)[rank]).clone().requires_grad_()
        q.zero_grad()
        if rank is None:
            with rows_in_the_order_of(split, q):
                z_q, _, loss = q(z)
        else:
            z_q, _, loss = q(z)
        loss = loss * len(z) / B
        (loss + z_q.square().sum() / whole.numel()).backward()
        out = {"loss": loss.detach(), "grad z": torch.zeros_like(z) if z.grad is None else z.grad}
        if optimizer is not None:
            out["grad"] = torch.cat([p.grad.flatten() for p in q.parameters() if p.grad is not None])
            if rank is not None:
                dist.all_reduce(out["grad"])
            parts = out["grad"].split([p.numel() for p in q.parameters()])
            for p, part in zip(q.parameters(), parts, strict=True):
                p.grad = part.view_as(p)
            optimizer.step()
        state = {key: value.clone() for key, value in q.state_dict().items()}
        bits = b"".join(value.contiguous().view(torch.uint8).numpy().tobytes() for value in state.values())
        yield out | state | {"hash": torch.frombuffer(bytearray(hashlib.sha256(bits).digest()), dtype=torch.uint8)}


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, dtype in RUNS:
        for step, results in enumerate(train(name, dtype, SPLITS[num_ranks], rank)):
            out |= {f"{name}/{dtype}/{step}/{key}": value.contiguous() for key, value in results.items()}
    return out


@pytest.fixture(scope="module", params=SPLITS, ids=lambda n: f"{n} ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return gloo_ranks.run(work, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_the_ranks_train_as_one_process_does(ranks: list[dict[str, Tensor]], name: str) -> None:
    expected_steps = train(name, torch.float64, SPLITS[len(ranks)], None)
    for step, expected in enumerate(expected_steps):
        got = [{key: rank[f"{name}/{torch.float64}/{step}/{key}"] for key in expected} for rank in ranks]
        assert expected["loss"] > 0.05
        assert_close(torch.stack([rank["loss"] for rank in got]).sum(), expected["loss"], 1e-12)
        assert_close(torch.cat([rank["grad z"] for rank in got]), expected["grad z"], 1e-12)
        for key in expected.keys() - {"loss", "grad z", "hash"}:
            for rank in got:
                assert_close(rank[key], expected[key], 1e-12)


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_the_ranks_hold_the_same_bits_after_every_step(
    ranks: list[dict[str, Tensor]], name: str, dtype: torch.dtype
) -> None:
    hashes = [[rank[f"{name}/{dtype}/{step}/hash"] for step in range(len(SPLITS[len(ranks)]))] for rank in ranks]
    for other in hashes[1:]:
        assert all(map(torch.equal, hashes[0], other))
    assert len({tuple(hash.tolist()) for hash in hashes[0]}) == len(hashes[0])  # it moves
