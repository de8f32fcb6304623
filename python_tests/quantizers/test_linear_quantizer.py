"""LinearQuantizer against its formulas in float64, and against vector-quantize-pytorch's SimVQ."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cases import assert_close
from vqdm_cuda.quantizers import LinearQuantizer

K, D, N, STEPS = 11, 4, 60, 20


def quantizer(**options: Any) -> LinearQuantizer:
    torch.manual_seed(0)
    return LinearQuantizer(K, D, **options)


def features(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(N, D, dtype=torch.float64, generator=generator) + 0.1 * step).to(dtype)


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "codebook_weight": 2.0},
        {"table_dim": 24, "commitment_weight": 1.0, "codebook_weight": 0.33},  # VQGAN-LC's constants
    ],
    ids=["SimVQ", "no bias", "VQGAN-LC"],
)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_twenty_steps_equal_the_published_formulas(options, dtype, relative):
    q = quantizer(**options).to(dtype)
    if "table_dim" in options:
        q.set_codes(torch.randn(K, 24, dtype=torch.float64) / 24**0.5)
    optimizer = torch.optim.SGD(q.parameters(), lr=0.05)
    table = q.weight.clone()
    E, parameters = table.double(), [p.detach().double().clone().requires_grad_() for p in q.linear_map.parameters()]
    start = q.codebook.detach()
    for step in range(STEPS):
        z, wide = features(step, dtype).requires_grad_(), features(step, dtype).double().requires_grad_()
        optimizer.zero_grad()
        z_q, indices, loss = q(z)
        (loss + z_q.square().mean()).backward()
        optimizer.step()

        e = E @ parameters[0].T + (parameters[1] if len(parameters) == 2 else 0.0)
        assert torch.equal(indices, (wide[:, None] - e[None]).square().sum(-1).argmin(1))
        codes = e[indices]
        commitment, codebook = (wide - codes.detach()).square().mean(), (codes - wide.detach()).square().mean()
        expected = q.commitment_weight * commitment + q.codebook_weight * codebook
        passed = (codes.detach() + wide - wide.detach()).square().mean()
        gradients = torch.autograd.grad(expected + passed, [wide, *parameters])
        assert z.grad is not None
        assert_close(z_q, codes.detach(), relative)
        assert_close(loss, expected.detach(), relative)
        assert_close(z.grad, gradients[0], relative)
        parameters = [
            (p - 0.05 * gradient).detach().requires_grad_()
            for p, gradient in zip(parameters, gradients[1:], strict=True)
        ]
        for own, p in zip(q.linear_map.parameters(), parameters, strict=True):
            assert_close(own.detach(), p.detach(), relative)
    assert torch.equal(q.weight, table)
    assert not q.weight.requires_grad
    assert ((q.codebook - start).abs() > 1e-3).all()  # each code, whoever selected it
    assert torch.equal(q.decode(indices), q.codebook.detach()[indices])


def test_twenty_steps_equal_the_simvq_of_vector_quantize_pytorch():
    peer_module = pytest.importorskip("vector_quantize_pytorch")
    q = quantizer(bias=False, commitment_weight=0.25, codebook_weight=1.0)
    peer = peer_module.SimVQ(D, K, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25)
    with torch.no_grad():
        peer.frozen_codebook.copy_(q.weight)
        peer.code_transform.weight.copy_(q.linear_map.weight)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05) for module in (q, peer)]
    for step in range(STEPS):
        ours, theirs = (features(step, torch.float32)[None].requires_grad_() for _ in range(2))
        results = [q(ours), peer(theirs)]
        assert torch.equal(results[0].indices, results[1][1])
        torch.testing.assert_close(results[0].z_q, results[1][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(results[0].loss, results[1][2], rtol=1e-5, atol=0)
        for optimizer, (z_q, _, loss) in zip(optimizers, results, strict=True):
            optimizer.zero_grad()
            (loss + z_q.square().mean()).backward()
            optimizer.step()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(q.linear_map.weight, peer.code_transform.weight, rtol=1e-5, atol=1e-6)


# starts --------------------------------------------------------------------------------------------------------------


def test_the_codes_start_with_unit_length_on_average():
    torch.manual_seed(0)
    for table_dim in (None, 96):
        q = LinearQuantizer(5000, 8, table_dim=table_dim, bias=False)
        assert q.weight.square().sum(1).mean().item() == pytest.approx(1.0, rel=0.02)
        assert q.linear_map.weight.std().item() == pytest.approx(8**-0.5, rel=0.15)
    assert LinearQuantizer(5000, 8, init_std=0.3).weight.std().item() == pytest.approx(0.3, rel=0.02)


def test_a_reset_draws_table_and_map_anew():
    q = quantizer()
    fresh = quantizer()
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.fill_(float("nan"))
    q.reset_parameters()
    assert q.codebook.isfinite().all()
    torch.manual_seed(5)
    q.reset_parameters()
    torch.manual_seed(5)
    fresh.reset_parameters()
    assert torch.equal(q.codebook, fresh.codebook)


def test_it_starts_at_given_codes():
    codes = torch.randn(K, D)
    for q in (quantizer(), quantizer(bias=False)):
        q.start_at(codes)
        assert torch.equal(q.codebook, codes)
        assert torch.equal(q.encode(codes), torch.arange(K))
    with pytest.raises(ValueError, match=r"LinearQuantizer.start_at: expected table_dim 4, .*, got 9"):
        quantizer(table_dim=9).start_at(codes)


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"table_dim": 0}, ValueError, "table_dim of at least 1, got 0"),
        ({"table_dim": 2.0}, TypeError, "table_dim to be an int, got float"),
        ({"bias": 1}, TypeError, "bias to be true or false, got int"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=f"LinearQuantizer: expected {message}"):
        quantizer(**options)


def test_the_configuration_rebuilds_the_module():
    q = quantizer(table_dim=9, bias=False, codebook_weight=0.33, gradient="rotation", init_bound=0.1)
    config = q.config
    assert config.pop("kind") == "linear"
    assert LinearQuantizer(**config).config == q.config
    assert list(q.state_dict()) == ["weight", "linear_map.weight"]
    assert q.codebook_parameters() == list(q.linear_map.parameters()) == list(q.parameters())
