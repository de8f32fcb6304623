"""OnlineClusteringQuantizer against its formulas in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cases import assert_close
from vqdm_cuda.quantizers import OnlineClusteringQuantizer
from vqdm_cuda.quantizers.online import ANCHORS
from vqdm_cuda.reference.sinkhorn import gumbel

K, D, N, STEPS = 11, 4, 60, 20


def quantizer(**options: Any) -> OnlineClusteringQuantizer:
    torch.manual_seed(0)
    return OnlineClusteringQuantizer(K, D, **{"init_std": 1.0, **options})


def features(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(N, D, dtype=torch.float64, generator=generator) + 0.1 * step).to(dtype)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.double()[:, None] - b.double()[None]).square().sum(-1)


def published_anchors(anchors: str, z: Tensor, e: Tensor, seed: int) -> Tensor:
    """Those of the codes e [k, d], by the whole matrix of distances."""
    if anchors == "random":
        return z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[torch.arange(len(e)) % len(z)]]
    distances = squared_distances(e, z)
    noise = gumbel(seed, 0, len(e), len(z)) if anchors == "probabilistic" else 0.0
    return z[(distances - noise).argmin(1)]


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", ANCHORS)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_twenty_steps_equal_the_published_formulas(anchors, dtype, relative):
    """With an optimizer: the gradient is that of the codes before they move, its step starts where they moved to."""
    g, rate = 0.9, 0.5
    q = quantizer(anchors=anchors, decay=g, commitment_weight=0.3, codebook_weight=0.7).to(dtype)
    optimizer = torch.optim.SGD(q.parameters(), lr=rate)
    e, p = q.weight.detach().double().clone().requires_grad_(), torch.zeros(K, dtype=torch.float64)
    furthest = 0.0
    for step in range(STEPS):
        z, wide = features(step, dtype).requires_grad_(), features(step, dtype).double().requires_grad_()
        torch.manual_seed(step)
        seed = int(torch.randint(2**63 - 1, ()))
        torch.manual_seed(step)
        optimizer.zero_grad()
        z_q, indices, loss = q(z)
        (loss + 0.1 * z_q.square().sum()).backward()
        optimizer.step()

        assert torch.equal(indices, squared_distances(wide, e).argmin(1))
        codes = e[indices]
        expected = 0.3 * (wide - codes.detach()).square().mean() + 0.7 * (codes - wide.detach()).square().mean()
        (expected + 0.1 * (codes.detach() + wide - wide.detach()).square().sum()).backward()
        assert z.grad is not None
        assert wide.grad is not None
        assert q.weight.grad is not None
        assert e.grad is not None
        with torch.no_grad():
            assert_close(z_q, codes, relative)
            assert_close(loss, expected, relative)
            assert_close(z.grad, wide.grad, relative)
            assert_close(q.weight.grad, e.grad, 10 * relative)
            p = g * p + (1 - g) * torch.bincount(indices, minlength=K).double() / N
            a = torch.exp(-10 * K * p / (1 - g) - 1e-3)[:, None]
            moving = (a > 2**-64)[:, 0]  # others' anchors would be drawn in vain
            moved = e.clone()
            moved[moving] = (1 - a[moving]) * e[moving] + a[moving] * published_anchors(anchors, wide, e[moving], seed)
            furthest = max(furthest, float((moved - e).abs().max()))
            e = (moved - rate * e.grad).requires_grad_()
            assert_close(q.usage, p, relative)
            assert_close(q.weight, e, relative)
    assert furthest > 0.3


def test_probabilistic_anchors_are_drawn_from_the_softmax_of_the_distances():
    """Four thousand codes in one place, of which the first takes all features and the others move."""
    draws = 4001
    q = OnlineClusteringQuantizer(draws, 2).double()
    z = torch.tensor([[0.3, 0.0], [0.0, 0.8], [-1.0, 0.2], [0.6, -0.9], [1.2, 1.0], [-0.4, -1.5]], dtype=torch.float64)
    q.set_codes(torch.zeros(draws, 2))
    torch.manual_seed(0)
    q(z)
    assert torch.equal(q.codebook[0], torch.zeros(2, dtype=torch.float64))
    anchors = squared_distances(q.codebook[1:], z).argmin(1)
    torch.testing.assert_close(q.codebook[1:], z[anchors], rtol=2e-3, atol=0)  # 1 - exp(-1e-3) of the way is left
    expected = (draws - 1) * torch.softmax(-z.square().sum(1), 0)
    counts = torch.bincount(anchors, minlength=len(z))
    assert ((counts - expected).square() / expected).sum() < 20.5  # chi-square of 5 degrees, 0.999


def test_a_feature_of_no_share_of_the_softmax_is_never_drawn():
    q = OnlineClusteringQuantizer(500, 2)
    q.set_codes(torch.zeros(500, 2))
    z = torch.tensor([[0.5, 0.0], [9.0, 0.0], [0.0, 0.5]])
    q(z)
    assert q.codebook[1:].max() <= 0.5


def test_codes_in_use_hardly_move():
    q = quantizer()
    z = q.weight.detach().repeat(5, 1) + 0.01 * torch.randn(5 * K, D)
    before = q.weight.detach().clone()
    q(z)
    torch.testing.assert_close(q.weight.detach(), before, rtol=0, atol=1e-3)  # a = e^-10
    assert not torch.equal(q.weight, before)


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay from 0 to less than 1, got 1.0"),
        ({"decay": -0.1}, "decay from 0 to less than 1, got -0.1"),
        ({"anchors": "farthest"}, r"anchors to be one of \('closest', 'random', 'probabilistic'\), got 'farthest'"),
        ({"codebook_weight": float("inf")}, "codebook_weight to be finite and not negative, got inf"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"OnlineClusteringQuantizer: expected {message}"):
        quantizer(**options)


def test_the_configuration_rebuilds_the_module():
    q = quantizer(decay=0.9, anchors="random", codebook_weight=0.5, gradient="rotation")
    config = q.config
    assert config.pop("kind") == "online"
    assert OnlineClusteringQuantizer(**config).config == q.config
    assert list(q.state_dict()) == ["weight", "usage"]
    assert [p is q.weight for p in q.codebook_parameters()] == [True]
