"""One, two and four processes (gloo), with parts of the rows, assign as one process with all of them does.

Each number of ranks is started once, goes through all cases, and leaves its results in files that the tests read.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import gloo_ranks
from cases import assert_close
from vqdm_cuda import sinkhorn

N, K, D = 600, 90, 6
SPLITS: dict[int, list[tuple[int, ...]]] = {
    1: [(600,)],
    2: [(300, 300), (599, 1), (0, 600), (217, 383)],
    4: [(150, 150, 150, 150), (1, 0, 589, 10), (0, 0, 600, 0), (97, 203, 101, 199)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "squared": {"cost": "sqeuclidean"},
    "floor": {"floor": 1e-8},
    "not normalised": {"normalize": None, "eps": 0.5},
    "by dimension": {"normalize": "dim", "floor": 1e-8},
    "drawn": {"seed": 5, "eps": 1.0},
    "local": {"stats": "local", "floor": 1e-8},
    "local, exact": {"stats": "local"},
}


def rows_and_codes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z, e = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (N, K))
    z[:250] = 2 * z[:250] + 1  # so that the ranks' statistics differ
    return z.to(dtype), (e + 0.5).to(dtype)


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.float64):
        z, e = rows_and_codes(dtype)
        for case, split in enumerate(SPLITS[num_ranks]):
            for name, options in OPTIONS.items():
                f, g, indices = sinkhorn(z.split(split)[rank], e, **options, group=dist.group.WORLD)
                key = f"{dtype}/{name}/{case}"
                out |= {f"{key}/f": f, f"{key}/g": g, f"{key}/indices": indices}
    return out


@pytest.fixture(scope="module", params=SPLITS, ids=lambda n: f"{n} ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return gloo_ranks.run(work, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in OPTIONS if "local" not in name])
def test_the_ranks_assign_as_one_process(ranks: list[dict[str, Tensor]], name: str, dtype: torch.dtype) -> None:
    z, e = rows_and_codes(dtype)
    f, g, indices = sinkhorn(z, e, **OPTIONS[name])
    relative = {torch.float32: 3e-6, torch.float64: 1e-13}[dtype] * max(1.0, float(f.abs().max()))
    for case in range(len(SPLITS[len(ranks)])):
        key = f"{dtype}/{name}/{case}"
        assert torch.equal(torch.cat([rank[f"{key}/indices"] for rank in ranks]), indices)
        assert_close(torch.cat([rank[f"{key}/f"] for rank in ranks]), f, relative, scale=1.0)
        for rank in ranks:
            assert torch.equal(rank[f"{key}/g"], ranks[0][f"{key}/g"])
        assert_close(ranks[0][f"{key}/g"], g, relative, scale=1.0)


def published(z: Tensor, e: Tensor, split: tuple[int, ...], floor: float) -> Tensor:  # log plan [N, K]
    """OptVQ's recursion in float64 on several ranks: statistics of each rank's own matrix, row sums of codes and the
    first total over all of them, and as many rows as there are."""
    parts = []
    for own in z.double().split(split):
        A = torch.cdist(own, e.double(), compute_mode="donot_use_mm_for_euclid_dist")
        if own.shape[0]:
            A = (A - A.mean()) / (A.std() + 1e-6)
            A = A - A.min()
        parts.append(torch.exp(-10 * A).T)
    Q = torch.cat(parts, 1)
    Q = Q / (Q.sum() + floor)
    for _ in range(5):
        Q = Q / (Q.sum(1, keepdim=True) + floor) / e.shape[0]
        Q = Q / (Q.sum(0, keepdim=True) + floor) / z.shape[0]
    return Q.T.log()


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize(("name", "floor"), [("local", 1e-8), ("local, exact", 0.0)])
def test_local_statistics_are_the_published_behaviour(
    ranks: list[dict[str, Tensor]], name: str, floor: float, dtype: torch.dtype, gap: float
) -> None:
    z, e = rows_and_codes(dtype)
    for case, split in enumerate(SPLITS[len(ranks)]):
        indices = torch.cat([rank[f"{dtype}/{name}/{case}/indices"] for rank in ranks])
        log_plan = published(z, e, split, floor)
        best, expected = log_plan.max(1)
        chosen = log_plan.gather(1, indices[:, None])[:, 0]
        assert ((indices == expected) | (best - chosen <= gap)).all()


def test_local_statistics_differ_from_global_ones(ranks: list[dict[str, Tensor]]) -> None:
    if len(ranks) == 1:
        return
    local, whole = (
        torch.cat([rank[f"{torch.float64}/{name}/0/indices"] for rank in ranks]) for name in ("local", "floor")
    )
    assert (local != whole).float().mean() > 0.01
