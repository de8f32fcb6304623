"""EMAQuantizer against its formulas in float64, and against vector-quantize-pytorch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cases import assert_close
from vqdm_cuda.quantizers import EMAQuantizer, MultiScaleQuantizer

K, D, N, STEPS = 11, 4, 60, 20


def quantizer(**options: Any) -> EMAQuantizer:
    torch.manual_seed(0)
    return EMAQuantizer(K, D, **{"init_std": 1.0, **options})


def features(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[N, d] that drift from step to step, so that codes are left behind."""
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(N, D, dtype=torch.float64, generator=generator) + 0.1 * step).to(dtype)


def nearest(rows: Tensor, e: Tensor) -> Tensor:
    return (rows.double()[:, None] - e.double()[None]).square().sum(-1).argmin(1)


class Published:
    """The averages and the codes, as in the papers, in float64."""

    def __init__(self, q: EMAQuantizer) -> None:
        self.N, self.m = torch.ones(K, dtype=torch.float64), q.weight.double().clone()
        self.e = self.m.clone()
        self.q = q

    def step(self, z: Tensor, indices: Tensor, seed: int) -> Tensor:
        """One step; the numbers of the codes that were revived."""
        g, eps = self.q.decay, self.q.smoothing
        chosen = torch.nn.functional.one_hot(indices, K).double()
        self.N = g * self.N + (1 - g) * chosen.sum(0)
        self.m = g * self.m + (1 - g) * chosen.T @ z.double()
        smoothed = (self.N + eps) / (self.N.sum() + K * eps) * self.N.sum()
        self.e = self.m / smoothed[:, None]
        dead = torch.lt(self.N, self.q.revive_below).nonzero()[:, 0]
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
        for place, k in enumerate(dead):
            self.e[k] = z[order[place % len(z)]]
            self.N[k] = self.q.revive_below
            self.m[k] = self.q.revive_below * self.e[k]
        return dead


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"decay": 0.8, "smoothing": 0.1}, {"decay": 0.9, "revive_below": 1.0}])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_twenty_steps_equal_the_published_formulas(options, dtype, relative):
    q = quantizer(**options).to(dtype)
    published, revived = Published(q), 0
    for step in range(STEPS):
        z = features(step, dtype)
        torch.manual_seed(step)
        seed = int(torch.randint(2**63 - 1, ()))
        torch.manual_seed(step)
        z_q, indices, loss = q(z)
        assert torch.equal(indices, nearest(z, published.e))
        assert_close(z_q, published.e[indices], relative)
        assert_close(loss, 0.25 * (z.double() - published.e[indices]).square().mean(), relative)
        revived += len(published.step(z, indices, seed))
        assert_close(q.counts, published.N, relative)
        assert_close(q.sums, published.m, relative)
        assert_close(q.codebook, published.e, relative)
    assert (revived > 0) == bool(q.revive_below)
    assert q.codebook.dtype == q.counts.dtype == q.sums.dtype == dtype


def test_twenty_steps_equal_vector_quantize_pytorch():
    peer_module = pytest.importorskip("vector_quantize_pytorch")
    q = quantizer(decay=0.9)
    peer = peer_module.VectorQuantize(
        D, K, decay=0.9, eps=1e-5, threshold_ema_dead_code=0, commitment_weight=0.25, rotation_trick=False
    )
    table = peer._codebook
    assert torch.equal(table.cluster_size, torch.ones(1, K))  # its averages start where ours do
    table.embed.copy_(q.weight[None])
    table.embed_avg.copy_(q.weight[None])
    for step in range(STEPS):
        ours, theirs = (features(step, torch.float32).requires_grad_() for _ in range(2))
        z_q, indices, loss = q(ours)
        peer_z_q, peer_indices, peer_loss = peer(theirs)
        assert torch.equal(indices, peer_indices)
        torch.testing.assert_close(z_q, peer_z_q, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss, peer_loss[()], rtol=1e-5, atol=0)
        (z_q.square().sum() + loss).backward()
        (peer_z_q.square().sum() + peer_loss).backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
        for state, peer_state in (("weight", "embed"), ("counts", "cluster_size"), ("sums", "embed_avg")):
            torch.testing.assert_close(getattr(q, state), getattr(table, peer_state)[0], rtol=1e-5, atol=1e-5)


def test_a_code_that_nobody_selects_stays_until_the_smoothing_outweighs_it():
    q = quantizer(decay=0.5).double()
    codes = torch.randn(K, D, dtype=torch.float64) + 50
    codes[3] = -1000.0
    q.set_codes(codes)
    for step in range(10):
        q(features(step) + 50)
    torch.testing.assert_close(q.codebook[3], codes[3], rtol=0.02, atol=0)  # N is 2^-10, eps a hundredth of it
    for step in range(10, 60):
        q(features(step) + 50)
    assert q.codebook.isfinite().all()
    assert q.codebook[3].abs().max() < 1e-6


# revival -------------------------------------------------------------------------------------------------------------


def test_dead_codes_take_different_features_while_there_are_some():
    q = quantizer(revive_below=1.0, decay=0.5)
    codes = torch.randn(K, D)
    codes[1::2] += 1000  # five codes that no feature selects
    q.set_codes(codes)
    z = torch.randn(5, D)
    dead = torch.ones(K, dtype=torch.bool).index_fill(0, q(z).indices, False)
    assert 5 < dead.sum() < K
    assert (q.counts[dead] == 1).all()
    matches = (q.codebook[dead][:, None] == z[None]).all(-1)
    assert (matches.sum(1) == 1).all()
    assert (matches.sum(0) >= 1).all()  # each feature once before any twice
    assert matches.sum(0).max() - matches.sum(0).min() <= 1
    assert torch.equal(q.sums[dead], q.codebook[dead])


def test_more_dead_codes_than_features():
    q = quantizer(revive_below=1.0)
    q.set_codes(torch.randn(K, D) + 100)
    z = torch.randn(2, D)
    q(z)
    matches = (q.codebook[:, None] == z[None]).all(-1)
    assert matches.any(1).sum() >= K - 1  # a code that both features chose may live
    assert matches.any(0).all()


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay from 0 to less than 1, got 1.0"),
        ({"decay": -0.1}, "decay from 0 to less than 1, got -0.1"),
        ({"decay": float("nan")}, "decay from 0 to less than 1, got nan"),
        ({"smoothing": 0.0}, "smoothing to be finite and positive, got 0.0"),
        ({"revive_below": -1.0}, "revive_below to be finite and not negative, got -1.0"),
        ({"revive_below": float("inf")}, "revive_below to be finite and not negative, got inf"),
        ({"commitment_weight": -1.0}, "commitment_weight to be finite and not negative, got -1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"EMAQuantizer: expected {message}"):
        quantizer(**options)


def test_scales_with_a_phi_that_nothing_would_train_are_refused():
    with pytest.raises(
        ValueError, match=r"MultiScaleQuantizer: expected num_phi None with inner EMAQuantizer, .*got 4"
    ):
        MultiScaleQuantizer(quantizer(), (1, 2))


def test_the_configuration_rebuilds_the_module():
    q = quantizer(decay=0.9, smoothing=1e-3, revive_below=2.0, commitment_weight=0.5, gradient="rotation")
    config = q.config
    assert config.pop("kind") == "ema"
    assert EMAQuantizer(**config).config == q.config
    assert list(q.state_dict()) == ["weight", "counts", "sums"]
    assert list(q.parameters()) == q.codebook_parameters() == q.parameter_groups(lr=1.0, codebook_lr=1.0) == []
