"""Two and four processes (gloo) with parts of the images train a quantizer as one process with all of them does.

Each number of ranks is started once, goes through all cases, and leaves its results in files that the tests read.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import gloo_ranks
from cases import assert_close
from vqdm_cuda.quantizers import MultiScaleQuantizer, Quantizer, WassersteinQuantizer

# How many of 6 images each rank has, step by step: equal parts, unequal ones, none.
SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(3, 3), (5, 1), (0, 6), (4, 2), (6, 0)],
    4: [(2, 2, 1, 1), (3, 0, 2, 1), (0, 0, 6, 0), (1, 1, 1, 3), (0, 2, 0, 4)],
}
SCALES = (1, 2, 4)  # 21 vectors of each image; its last scale, and its 4 x 4 latents, have 16


def matched(**options: Any) -> WassersteinQuantizer:
    """L_W alone: the other terms are means over each rank's own vectors, which weigh unequal parts unequally."""
    alone: dict[str, Any] = {"wasserstein_weight": 1.0, "commitment_weight": 0.0, "codebook_weight": 0.0}
    return WassersteinQuantizer(30, 4, **{**alone, "grad_to": "both", **options})


CASES: dict[str, Any] = {
    "batch": lambda: matched(),
    "options": lambda: matched(unbiased=True, normalize="features", cov_scale=0.25, squared=True),
    "rate-distortion": lambda: matched(target="rate_distortion"),
    "gaussian": lambda: matched(target="gaussian", target_std=0.3, grad_to="features"),
    "queue": lambda: matched(queue_size=205),
    "queue, one step": lambda: matched(queue_size=50, unbiased=True),
    "queue, gaussian": lambda: matched(queue_size=205, target="gaussian", target_std=0.3, grad_to="features"),
    "pooled": lambda: MultiScaleQuantizer(matched(), SCALES),
    "per scale": lambda: MultiScaleQuantizer(matched(), SCALES, matching="per_scale"),
    "pooled queue": lambda: MultiScaleQuantizer(matched(queue_size=3 * 6 * 21), SCALES),
}


def build(name: str) -> Quantizer:
    torch.manual_seed(0)
    return CASES[name]().double()


def images(step: int) -> Tensor:  # [6, 4, 4, 4]
    return torch.randn(6, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) + step


def train_step(quantizer: Quantizer, z: Tensor) -> dict[str, Tensor]:
    """The loss of one training step, its gradients, and the buffers after it."""
    quantizer.zero_grad()
    z = z.clone().requires_grad_()
    loss = quantizer(z).loss
    loss.backward()
    out = {"loss": loss.detach(), "grad z": torch.zeros_like(z) if z.grad is None else z.grad}
    out |= {f"grad {name}": p.grad.clone() for name, p in quantizer.named_parameters() if p.grad is not None}
    return out | {name: buffer.clone() for name, buffer in quantizer.named_buffers()}


def whole_loss() -> MultiScaleQuantizer:
    torch.manual_seed(0)
    return MultiScaleQuantizer(WassersteinQuantizer(30, 4, grad_to="both"), SCALES).double()


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name in CASES:
        quantizer = build(name)
        quantizer.group = dist.group.WORLD
        for step, split in enumerate(SPLITS[num_ranks]):
            results = train_step(quantizer, images(step).split(split)[rank])
            out |= {f"{name}/{step}/{key}": value.contiguous() for key, value in results.items()}
    quantizer = whole_loss()
    quantizer.group = dist.group.WORLD
    own = torch.cat([images(0), images(1)]).chunk(num_ranks)[rank]
    out |= {f"whole/{key}": value.contiguous() for key, value in train_step(quantizer, own).items()}
    return out


@pytest.fixture(scope="module", params=SPLITS, ids=lambda n: f"{n} ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return gloo_ranks.run(work, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_the_ranks_have_the_loss_and_gradients_of_one_process(ranks: list[dict[str, Tensor]], name: str) -> None:
    quantizer = build(name)
    for step, split in enumerate(SPLITS[len(ranks)]):
        expected = train_step(quantizer, images(step))
        assert expected["loss"] > 0.05
        for rank, own in enumerate(images(step).split(split)):
            got = {key: ranks[rank][f"{name}/{step}/{key}"] for key in expected}
            assert got["grad z"].shape == own.shape
            assert_close(got["loss"], expected["loss"], 1e-12)
            for key in expected:
                if key.startswith("grad") and key != "grad z":  # of a replica: the mean over ranks leaves it as it is
                    assert_close(got[key], expected[key], 1e-12)
                elif key.endswith("usage"):
                    assert torch.equal(got[key], expected[key])
                elif key.endswith("filled"):
                    assert got[key] == expected[key] > 0
                elif key.endswith("vectors"):  # in the order of the ranks, then of scales
                    assert torch.equal(got[key], ranks[0][f"{name}/{step}/{key}"])
                    assert torch.equal(in_order(got[key]), in_order(expected[key]))
                    assert torch.equal(got[key], expected[key]) or name == "pooled queue"
        # The gradient of the sum of all ranks' losses, which are equal.
        together = torch.cat([rank[f"{name}/{step}/grad z"] for rank in ranks])
        assert_close(together, len(ranks) * expected["grad z"], 1e-12)


def in_order(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].argsort(stable=True)]


def test_with_equal_parts_the_whole_loss_trains_as_in_one_process(ranks: list[dict[str, Tensor]]) -> None:
    expected = train_step(whole_loss(), torch.cat([images(0), images(1)]))
    assert len(expected) == 11  # loss; gradients of z, the codebook and three phi of two tensors; usage and matrices
    for rank in ranks:
        assert torch.equal(rank["whole/usage"], expected["usage"])
    # What DistributedDataParallel does with parameters. Each rank's loss is a mean over its own images.
    assert_close(torch.stack([rank["whole/loss"] for rank in ranks]).mean(), expected["loss"], 1e-12)
    assert_close(torch.cat([rank["whole/grad z"] for rank in ranks]), len(ranks) * expected["grad z"], 1e-12)
    for key in expected:
        if key.startswith("grad") and key != "grad z":
            assert_close(torch.stack([rank[f"whole/{key}"] for rank in ranks]).mean(0), expected[key], 1e-12)
