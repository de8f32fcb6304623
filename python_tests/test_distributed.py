"""Two processes give what one process gives on all rows: all_reduce_sum, moments, wasserstein_loss, Usage.

Both ranks run once, over the loopback interface, and leave their results in files that the tests read.
"""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import cases
import gloo_ranks
from vqdm_cuda.criteria import Usage
from vqdm_cuda.distributed import all_reduce_sum
from vqdm_cuda.losses import wasserstein_loss
from vqdm_cuda.ops.moments import moments

NUM_RANKS = 2
SPLITS = {"equal": 300, "unequal": 41, "one row": 1, "first empty": 0, "second empty": 600}
F64 = torch.float64


def all_rows() -> Tensor:  # [600, 3]
    torch.manual_seed(1)
    return cases.features(600, 3, offset=5.0)


def codebook() -> Tensor:  # [20, 3]
    torch.manual_seed(2)
    return cases.features(20, 3)


def slopes() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(3, dtype=F64), torch.randn(3, 3, dtype=F64)


def linear(mean: Tensor, cov: Tensor) -> Tensor:
    slope_mean, slope_cov = slopes()
    return (mean * slope_mean).sum() + (cov * slope_cov).sum()


def of_rank(x: Tensor, split: int, rank: int) -> Tensor:
    return (x[:split] if rank == 0 else x[split:]).clone()


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    everyone = dist.group.WORLD
    assert everyone is not None
    out: dict[str, Tensor] = {}

    x = torch.tensor([1.0, 10.0]) * (rank + 1)
    x.requires_grad_()
    total = all_reduce_sum(x, everyone)
    (first,) = torch.autograd.grad((total.pow(2) * (rank + 1)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    out |= {"sum": total, "sum gradient": first, "sum second": second, "sum input": x}

    for name, split in SPLITS.items():
        for unbiased in (False, True):
            rows = of_rank(all_rows(), split, rank).requires_grad_()
            mean, cov = moments(rows, unbiased=unbiased, group=everyone)
            (gradient,) = torch.autograd.grad(linear(mean, cov), rows)
            key = f"{name} {unbiased}"
            out |= {f"{key} mean": mean, f"{key} cov": cov, f"{key} gradient": gradient}
        z, e = of_rank(all_rows(), split, rank).requires_grad_(), codebook().requires_grad_()
        loss = wasserstein_loss(z, e, unbiased=True, group=everyone)
        grad_z, grad_e = torch.autograd.grad(loss, (z, e))
        out |= {f"{name} loss": loss, f"{name} grad z": grad_z, f"{name} grad e": grad_e}

    calls: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, group: dist.ProcessGroup | None) -> None:
        calls.append(tensor.numel())
        all_reduce(tensor, group=group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counted)
        far_mean, far_cov = moments(of_rank(all_rows() + 2.0**14, 41, rank), group=everyone)
    out |= {"far mean": far_mean, "far cov": far_cov, "far calls": torch.tensor(len(calls))}

    # Features that one rank alone asks the gradient of: the others' backward passes must not leave it waiting.
    z, e = of_rank(all_rows(), 41, rank).requires_grad_(rank == 1), codebook().requires_grad_()
    wasserstein_loss(z, e, group=everyone).backward()
    assert e.grad is not None
    out |= {"lone grad e": e.grad, "lone grad z": torch.zeros(0) if z.grad is None else z.grad}

    empty_mean, empty_cov = moments(torch.zeros(0, 3), group=everyone)
    out |= {"nothing mean": empty_mean, "nothing cov": empty_cov}

    usage = Usage(6)
    if rank == 1:
        usage.update([torch.tensor([0, 5, 5]), torch.tensor([[2**40 % 6]])])
    reduced = usage.reduce()
    out |= {"usage": usage.counts, "usage all": reduced.counts}
    usage.counts = torch.full((6,), 2**53 + rank)  # integers that float64 would round
    out["usage exact"] = usage.reduce(everyone).counts

    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Tensor]]:
    return gloo_ranks.run(work, NUM_RANKS, tmp_path_factory.mktemp("ranks"))


def test_all_reduce_sum(ranks):
    for rank in ranks:
        assert rank["sum"].tolist() == [3.0, 30.0]
        # Sum of both ranks' losses: (1 + 2) total^2.
        assert rank["sum gradient"].tolist() == [18.0, 180.0]
        assert rank["sum second"].tolist() == [12.0, 12.0]
    assert ranks[1]["sum input"].tolist() == [2.0, 20.0]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", SPLITS)
def test_moments_are_those_of_all_rows(ranks, name, unbiased):
    rows = all_rows().requires_grad_()
    mean, cov = moments(rows, unbiased=unbiased)
    (gradient,) = torch.autograd.grad(linear(mean, cov), rows)
    slack = 16 * torch.finfo(F64).eps
    for number, rank in enumerate(ranks):
        key = f"{name} {unbiased}"
        cases.assert_close(rank[f"{key} mean"], mean, slack)
        cases.assert_close(rank[f"{key} cov"], cov, slack, scale=float(rows.detach().abs().max()) ** 2)
        # Both ranks have the same loss, so the gradient of their sum is twice the one-process gradient.
        expected = NUM_RANKS * of_rank(gradient, SPLITS[name], number)
        cases.assert_close(rank[f"{key} gradient"], expected, 10 * slack, scale=float(gradient.abs().max()))
    assert all(torch.equal(ranks[0][f"{key} {part}"], ranks[1][f"{key} {part}"]) for part in ("mean", "cov"))


def test_one_collective_and_no_digits_lost_far_from_zero(ranks):
    """Of rows that their offset has rounded; the rows less that offset are exact."""
    shifted = all_rows() + 2.0**14
    mean, cov = moments(shifted - 2.0**14)
    for rank in ranks:
        assert rank["far calls"] == 1
        cases.assert_close(rank["far mean"] - 2.0**14, mean, torch.finfo(F64).eps, scale=2.0**14)
        cases.assert_close(rank["far cov"], cov, 1e-12)  # sums of squares would lose 8 digits


@pytest.mark.parametrize("name", SPLITS)
def test_wasserstein_loss_is_that_of_all_rows(ranks, name):
    z, e = all_rows().requires_grad_(), codebook().requires_grad_()
    loss = wasserstein_loss(z, e, unbiased=True)
    grad_z, grad_e = torch.autograd.grad(loss, (z, e))
    slack = 100 * cases.tolerance(F64, 3)
    for number, rank in enumerate(ranks):
        cases.assert_close(rank[f"{name} loss"], loss, slack)
        # The codebook is a replica: its gradient is not summed, and the mean over ranks leaves it as it is.
        cases.assert_close(rank[f"{name} grad e"], grad_e, slack)
        expected = NUM_RANKS * of_rank(grad_z, SPLITS[name], number)
        cases.assert_close(rank[f"{name} grad z"], expected, slack, scale=float(grad_z.abs().max()))


def test_one_rank_alone_asks_for_the_gradient_of_features(ranks):
    z, e = all_rows().requires_grad_(), codebook().requires_grad_()
    grad_z, grad_e = torch.autograd.grad(wasserstein_loss(z, e), (z, e))
    slack = 100 * cases.tolerance(F64, 3)
    assert ranks[0]["lone grad z"].numel() == 0
    cases.assert_close(ranks[1]["lone grad z"], NUM_RANKS * grad_z[41:], slack, scale=float(grad_z.abs().max()))
    for rank in ranks:
        cases.assert_close(rank["lone grad e"], grad_e, slack)


def test_no_rows_anywhere(ranks):
    assert all(rank["nothing mean"].isnan().all() and rank["nothing cov"].isnan().all() for rank in ranks)


def test_usage(ranks):
    assert ranks[0]["usage"].tolist() == [0] * 6
    assert ranks[1]["usage"].tolist() == [1, 0, 0, 0, 1, 2]
    for rank in ranks:
        assert rank["usage all"].tolist() == [1, 0, 0, 0, 1, 2]
        assert rank["usage exact"].tolist() == [2**54 + 1] * 6
