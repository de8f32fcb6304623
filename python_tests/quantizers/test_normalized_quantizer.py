"""NormalizedQuantizer against its formula in float64, and what unit lengths ask of it."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqdm_cuda.quantizers import MultiHeadQuantizer, MultiScaleQuantizer, NormalizedQuantizer, ResidualQuantizer
from vqdm_cuda.quantizers.normalized import _unit

F64 = torch.float64


def quantizer(codebook_size: int = 11, code_dim: int = 4, **options: Any) -> NormalizedQuantizer:
    torch.manual_seed(0)
    return NormalizedQuantizer(codebook_size, code_dim, **options)


def written_out(z: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z_q, indices and loss of rows [N, d] and a table [K, d], with LlamaGen's gradient."""
    u, e = F.normalize(z, dim=1), F.normalize(table, dim=1)
    indices = (u @ e.T).argmax(1)
    z_q = e[indices]
    loss = 0.25 * (u - z_q.detach()).square().mean() + (z_q - u.detach()).square().mean()
    return u + (z_q - u).detach(), indices, loss


# values and gradients ------------------------------------------------------------------------------------------------


def test_twenty_steps_of_training_are_those_of_the_formula():
    q = quantizer(init_std=2.0).double()
    x, target = 3 * torch.randn(300, 6, dtype=F64), torch.randn(300, 4, dtype=F64)
    encoders = [torch.randn(6, 4, dtype=F64, requires_grad=True)]
    encoders.append(encoders[0].detach().clone().requires_grad_())
    table = q.weight.detach().clone().requires_grad_()
    start = table.detach().clone()
    optimizers = [torch.optim.Adam([encoders[0], q.weight], lr=0.03), torch.optim.Adam([encoders[1], table], lr=0.03)]
    for _ in range(20):
        ours, wanted = q(x @ encoders[0]), written_out(x @ encoders[1], table)
        assert torch.equal(ours.indices, wanted[1])
        torch.testing.assert_close((ours.z_q, ours.loss), (wanted[0], wanted[2]), rtol=1e-9, atol=1e-9)
        for optimizer, (z_q, _, loss) in zip(optimizers, (ours, wanted), strict=True):
            optimizer.zero_grad()
            (loss + (z_q - target).square().mean()).backward()
            optimizer.step()
    torch.testing.assert_close((q.weight, encoders[0]), (table, encoders[1]), rtol=1e-8, atol=1e-8)
    assert (table - start).abs().max() > 0.2


def test_assignment_and_codes_are_those_of_cosine_similarity_in_vector_quantize_pytorch():
    q = quantizer(200, 8).eval()
    peer = (
        pytest.importorskip("vector_quantize_pytorch")
        .VectorQuantize(dim=8, codebook_size=200, use_cosine_sim=True)
        .eval()
    )
    peer._codebook.embed.copy_(q.codebook[None])
    z = 5 * torch.randn(2, 500, 8)
    codes, indices, _ = peer(z)
    ours = q(z)
    assert torch.equal(ours.indices, indices)
    torch.testing.assert_close(ours.z_q, codes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_unit_codes_come_out_and_decode_to_the_same_bits(training):
    q = quantizer(init_bound=0.1).train(training)
    z = 7 * torch.randn(2, 4, 3, 5)
    (z_q, indices, loss), terms = q(z, return_terms=True)
    assert z_q.shape == z.shape
    assert indices.shape == (2, 3, 5)
    torch.testing.assert_close(z_q.norm(dim=1), torch.ones(2, 3, 5))
    torch.testing.assert_close(q.codebook, F.normalize(q.weight, dim=1))
    assert torch.equal(q.encode(z), indices)
    assert torch.equal(q.decode(indices), z_q)
    assert torch.equal(sum(terms.values(), torch.zeros(())), loss.detach())
    assert torch.equal(q.encode(100 * z), indices)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_the_fused_pass_is_the_steps_one_by_one(gradient):
    q = quantizer(gradient=gradient).double()
    z = torch.randn(50, 4, dtype=F64, requires_grad=True)
    weights = torch.randn(50, 4, dtype=F64)
    z_q, indices, _ = q(z)
    codes = q.lookup(q.assign(z))
    steps = q.pass_gradient(z, codes)
    assert torch.equal(indices, q.assign(z))
    assert torch.equal(z_q, steps)
    results = []
    for out, terms in ((z_q, q.quantize(z)[2]), (steps, q.fit_terms(z, codes))):
        results.append(torch.autograd.grad((out * weights).sum() + sum(terms.values()), (z, q.weight)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_a_feature_is_turned_and_not_stretched():
    z = torch.randn(30, 4, dtype=F64, requires_grad=True)
    out = quantizer().double()(z)
    (grad,) = torch.autograd.grad((out.z_q * torch.randn(30, 4, dtype=F64)).sum() + out.loss, z)
    assert grad.norm(dim=1).min() > 1e-3
    torch.testing.assert_close((grad * z).sum(1), torch.zeros(30, dtype=F64), rtol=0, atol=1e-12)


def test_gradcheck():
    z, weight = torch.randn(9, 3, dtype=F64, requires_grad=True), torch.randn(5, 3, dtype=F64, requires_grad=True)

    def loss(z: Tensor, weight: Tensor, **weights: float) -> Tensor:
        return torch.func.functional_call(quantizer(5, 3, **weights).double(), {"weight": weight}, (z,)).loss

    for own, fixed in (("commitment_weight", "codebook_weight"), ("codebook_weight", "commitment_weight")):
        inputs = (z, weight.detach()) if own == "commitment_weight" else (z.detach(), weight)
        weights = {own: 1.0, fixed: 0.0}
        assert torch.autograd.gradcheck(lambda z, w, weights=weights: loss(z, w, **weights), inputs)
        assert torch.autograd.gradgradcheck(lambda z, w, weights=weights: loss(z, w, **weights), inputs)


def test_compiles_into_one_graph():
    q, z = quantizer(gradient="rotation"), torch.randn(2, 4, 3, 5, requires_grad=True)
    plain, compiled = q(z), torch.compile(q, fullgraph=True, backend="aot_eager")(z)
    assert torch.equal(plain.z_q, compiled.z_q)
    assert torch.equal(plain.indices, compiled.indices)
    wanted, got = (torch.autograd.grad(x.loss + x.z_q.square().sum(), [z, q.weight]) for x in (plain, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def test_pieces_of_vectors_are_normalised_alone():
    q = MultiHeadQuantizer(quantizer(11, 2), 3)
    z = torch.randn(2, 6, 3, 5)
    z_q, indices, _ = q(z)
    torch.testing.assert_close(z_q.unflatten(1, (3, 2)).norm(dim=2), torch.ones(2, 3, 3, 5))
    assert torch.equal(indices[..., 1], q.inner.encode(z[:, 2:4]))
    assert torch.equal(q.decode(indices), z_q)


# properties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3, 8, 32])
def test_a_vector_has_the_same_bits_in_any_company(d):
    q, z = quantizer(512, d).eval(), torch.randn(101, d)
    order, strided = torch.randperm(101), torch.randn(d, 2, 101).permute(2, 1, 0)[:, 0].copy_(z)
    for function in (q.encode, _unit, lambda rows: q(rows).z_q):
        together = function(z)
        assert torch.equal(torch.cat([function(row[None]) for row in z]), together)
        assert torch.equal(torch.cat([function(part) for part in z.split([1, 0, 50, 17, 33])]), together)
        assert torch.equal(function(z[order]), together[order])
        assert torch.equal(function(strided), together)
    image = z[:100].view(2, 5, 10, d).permute(0, 3, 1, 2)
    assert torch.equal(q.encode(image.contiguous()).flatten(), q.encode(z)[:100])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_and_autocast(dtype):
    q, z = quantizer().eval(), torch.randn(40, 4).to(dtype)
    wide, narrow = q(z.float()), q(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = q(z)
        assert torch.equal(q.encode(z), wide.indices)
        assert torch.equal(q.decode(wide.indices), wide.z_q)
    for got in (narrow, cast):
        assert got.z_q.dtype == dtype
        assert got.loss.dtype == torch.float32
        assert torch.equal(got.indices, wide.indices)
        assert torch.equal(got.z_q, wide.z_q.to(dtype))
        assert torch.equal(got.loss, wide.loss)
    half = copy.deepcopy(q).to(dtype)
    assert half.codebook.dtype == half(z.float()).z_q.dtype == torch.float32
    torch.testing.assert_close(half.codebook.norm(dim=1), torch.ones(11))


# nasty ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-10, 1e18])
def test_vectors_of_no_length_and_of_any_give_numbers(scale, gradient):
    q = quantizer(gradient=gradient)
    with torch.no_grad():
        q.weight[3] = 0
    z = torch.randn(6, 4)
    z[2] *= scale
    z.requires_grad_()
    quantized = q(z)
    (quantized.z_q.sum() + quantized.loss).backward()
    assert q.weight.grad is not None
    assert z.grad is not None
    for tensor in (quantized.z_q, quantized.loss, z.grad, q.weight.grad):
        assert tensor.isfinite().all()
    assert quantized.indices[2] == 3 or scale >= 1e-10  # what has no direction is nearest to the code without one
    assert torch.equal(q.codebook[3], torch.zeros(4))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 4, 3, 5)])
def test_no_vectors_give_no_loss(shape):
    q, z = quantizer(), torch.zeros(shape, requires_grad=True)
    z_q, indices, loss = q(z)
    loss.backward()
    assert z_q.shape == shape
    assert loss.item() == 0.0
    assert q.decode(indices).shape == q.decode(q.encode(z)).shape == shape


def test_a_broken_vector_leaves_its_neighbours_alone():
    q, z = quantizer(), torch.randn(3, 4)
    clean = q(z)
    for broken in (torch.nan, torch.inf):
        z[1, 2] = broken
        got = q(z)
        assert got.indices[1] == 0
        assert torch.equal(got.z_q[[0, 2]], clean.z_q[[0, 2]])
        assert got.loss.isnan()


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", [lambda q: ResidualQuantizer(q, 2), lambda q: MultiScaleQuantizer(q, (1, 2))])
def test_what_is_left_over_is_refused(structure):
    with pytest.raises(ValueError, match=r"Quantizer: expected inner with codes of any length, since .*, got Normal"):
        structure(quantizer())


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"NormalizedQuantizer: expected gradient to be one of .*, got 'none'"):
        quantizer(gradient="none")
    with pytest.raises(ValueError, match=r"NormalizedQuantizer: expected codebook_weight to be finite .*, got -1"):
        quantizer(codebook_weight=-1)
    with pytest.raises(ValueError, match=r"NormalizedQuantizer: expected z \[B, 4, h, w\]"):
        quantizer()(torch.zeros(3, 5))
