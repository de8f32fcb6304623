"""FiniteScalarQuantizer against the published formula in float64 and against vector-quantize-pytorch."""

import copy
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from cases import DEVICES
from vqdm_cuda.quantizers import FiniteScalarQuantizer, MultiHeadQuantizer, MultiScaleQuantizer

PUBLISHED = [[8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [8, 8, 8, 5, 5, 5]]
ODD = [[2], [3, 2], [1000], [17, 2, 9, 16], [7] * 11]


def written_out(z: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    """z_q [N, d] with its gradient and the indices [N] of the published formula, in float64."""
    L = torch.tensor(levels, dtype=torch.float64)
    half_l, offset, half = (L - 1) * 1.001 / 2, (L % 2 == 0) / 2, L // 2
    bounded = torch.tanh(z.double() + torch.atanh(offset / half_l)) * half_l - offset
    rounded = bounded + (bounded.round() - bounded).detach()
    basis = [math.prod(levels[:j]) for j in range(len(levels))]
    return rounded / half, ((rounded + half).round().long() * torch.tensor(basis)).sum(-1)


def features(N: int, levels: list[int], **options: Any) -> Tensor:
    """[N, d] wide enough to reach every level."""
    return 2 * torch.randn(N, len(levels), generator=torch.Generator().manual_seed(0), **options)


# values and gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", PUBLISHED + ODD, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_the_values_are_those_of_the_published_formula(levels, device):
    z = features(3001, levels)
    q = FiniteScalarQuantizer(levels).to(device)
    z_q, indices, loss = q(z.to(device))
    expected_z_q, expected_indices = written_out(z, levels)
    assert torch.equal(indices.cpu(), expected_indices)
    torch.testing.assert_close(z_q.cpu().double(), expected_z_q, rtol=1e-7, atol=0)
    assert loss.item() == 0
    assert loss.device == z_q.device
    assert q.codebook_size == math.prod(levels)
    assert torch.equal(q.encode(z.to(device)), indices)
    assert torch.equal(q.decode(indices), z_q)


def test_twenty_steps_of_training_are_those_of_the_published_formula():
    levels = [8, 5, 5, 5]
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 64, 6), torch.randn(20, 64, 4)
    start = torch.randn(6, 4)
    weights, losses = [], []
    q = FiniteScalarQuantizer(levels)
    for dtype in (torch.float32, torch.float64):
        weight = start.to(dtype, copy=True).requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.5)
        for x, target in zip(inputs.to(dtype), targets.to(dtype), strict=True):
            z = x @ weight
            z_q = (q(z) if dtype == torch.float32 else written_out(z, levels))[0]
            loss = (z_q - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        weights.append(weight.detach().double())
    assert losses[:20] == pytest.approx(losses[20:], rel=1e-6)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert (weights[0] - start).abs().max() > 0.1


@pytest.mark.parametrize("levels", PUBLISHED, ids=str)
def test_values_and_gradients_are_those_of_vector_quantize_pytorch(levels):
    """With its defaults; it refuses two levels, where the published formula is far from symmetric."""
    peer = pytest.importorskip("vector_quantize_pytorch").FSQ(levels)
    ours = FiniteScalarQuantizer(levels)
    z = features(2048, levels).requires_grad_()
    upstream = torch.randn_like(z)
    (got, indices, _), (wanted, wanted_indices) = ours(z[None]), peer(z[None])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    assert torch.equal(indices, wanted_indices.long())
    gradients = [torch.autograd.grad(z_q[0], z, upstream)[0] for z_q in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.codebook, peer.implicit_codebook, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_the_bound():
    levels = [8, 5, 2, 7]
    z = features(50, levels, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(50, 4, dtype=torch.float64)
    got = torch.autograd.grad(FiniteScalarQuantizer(levels).double()(z).z_q, z, upstream, create_graph=True)[0]
    wanted = torch.autograd.grad(written_out(z, levels)[0], z, upstream, create_graph=True)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-15)
    second = [torch.autograd.grad(gradient.square().sum(), z)[0] for gradient in (got, wanted)]
    torch.testing.assert_close(*second, rtol=1e-11, atol=1e-13)


def test_halfway_between_two_values_the_bound_decides():
    """The thresholds are where the bound rounds up: from there on an index is one level higher."""
    levels = [7, 8]
    q = FiniteScalarQuantizer(levels).double()
    for j, level in enumerate(levels):
        below = q.constants[4 : 3 + level, j]
        z = torch.zeros(level - 1, 2, dtype=torch.float64)
        for step, digit in ((-1e-12, 0), (1e-12, 1)):
            z[:, j] = below + step
            digits = q.encode(z) // math.prod(levels[:j]) % level
            assert torch.equal(digits, torch.arange(level - 1) + digit)


# properties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [8, 8, 8, 6, 5]], ids=str)
def test_an_index_depends_on_its_vector_alone(levels):
    """To the bit, of features that lie as near to the thresholds as float32 has numbers."""
    q = FiniteScalarQuantizer(levels).eval()
    d = len(levels)
    thresholds = q.constants[4:].T.contiguous()
    near = torch.stack([thresholds[j, torch.randint(levels[j] - 1, (1024,))] for j in range(d)], 1)
    z = torch.cat([near, near.nextafter(torch.tensor(9.0)), near.nextafter(torch.tensor(-9.0)), features(1024, levels)])
    indices = q.encode(z)
    order = torch.randperm(len(z))
    assert torch.equal(q.encode(z[order]), indices[order])
    for size, N in ((1, 200), (7, 1500), (64, 3001), (1000, 3001)):
        assert torch.equal(torch.cat([q.encode(part) for part in z[:N].split(size)]), indices[:N])
    image = z.T.reshape(1, d, 64, 64)
    strided = torch.empty(4096, 2 * d)[:, ::2].copy_(z)
    assert torch.equal(q.encode(image).view(-1), indices)
    assert torch.equal(q.encode(strided), indices)
    for quantized in (q(z), q.train()(z)):
        assert torch.equal(quantized.indices, indices)
        assert torch.equal(quantized.z_q, q.decode(indices))


def test_every_index_is_that_of_its_code():
    q = FiniteScalarQuantizer([5, 4, 3, 7])
    assert q.codebook.shape == (420, 4)
    assert q.codebook.unique(dim=0).shape == (420, 4)
    assert q.codebook.abs().max() == 1
    assert torch.equal(q.codebook, q.decode(torch.arange(420)))
    # Back through the inverse of the bound, of codes clear of its ends.
    L = torch.tensor(q.levels)
    half_l, offset = (L - 1) * 1.001 / 2, (L % 2 == 0) / 2
    z = torch.atanh((q.codebook * (L // 2) + offset) / half_l) - torch.atanh(offset / half_l)
    assert torch.equal(q.encode(z), torch.arange(420))
    assert torch.equal(q.decode(torch.tensor([[1, 5], [20, 60]])), q.codebook[torch.tensor([[1, 5], [20, 60]])])


def test_layouts_agree():
    q = FiniteScalarQuantizer([8, 5, 5, 5])
    z = torch.randn(2, 4, 3, 5)
    first, last = q(z), q(z.permute(0, 2, 3, 1).reshape(2, 15, 4))
    assert first.z_q.shape == z.shape
    assert torch.equal(first.indices.view(2, 15), last.indices)
    assert torch.equal(first.z_q.permute(0, 2, 3, 1).reshape(2, 15, 4), last.z_q)
    assert torch.equal(q.decode(first.indices), first.z_q)


def test_narrow_types_are_quantised_in_float32_whatever_the_autocast():
    levels = [8, 6, 5]
    q, z = FiniteScalarQuantizer(levels), features(200, levels).bfloat16()
    wide = q(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        narrow, again = q(z), q(z.float())
    assert narrow.z_q.dtype == torch.bfloat16
    assert narrow.loss.dtype == torch.float32
    assert torch.equal(narrow.indices, wide.indices)
    assert torch.equal(narrow.z_q, wide.z_q.bfloat16())
    assert torch.equal(again.z_q, wide.z_q)
    for cast in (q.bfloat16(), copy.deepcopy(q).half()):  # a module in half precision keeps its thresholds
        assert torch.equal(cast(z.float()).z_q, wide.z_q)
    assert q.half()(z.half()).z_q.dtype == torch.float16


def test_float64_codes_are_those_of_a_float64_module():
    q = FiniteScalarQuantizer([7, 6]).double()
    z = features(100, [7, 6], dtype=torch.float64)
    z_q, indices, _ = q(z)
    assert torch.equal(q.decode(indices), z_q)
    torch.testing.assert_close(z_q, written_out(z, [7, 6])[0], rtol=1e-15, atol=0)
    z_q, indices, _ = q.float()(z)
    assert z_q.dtype == torch.float64
    assert torch.equal(q.decode(indices).double(), z_q)


def test_compiles_into_one_graph():
    q = FiniteScalarQuantizer([8, 5, 5, 5])
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    plain, compiled = q(z), torch.compile(q, fullgraph=True, backend="aot_eager")(z)
    assert torch.equal(plain.z_q, compiled.z_q)
    assert torch.equal(plain.indices, compiled.indices)
    wanted, got = (torch.autograd.grad(x.z_q.square().sum(), z)[0] for x in (plain, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)
    torch.compiler.reset()


def test_there_is_nothing_to_train_and_nothing_to_save():
    q = FiniteScalarQuantizer((8, 6, 5))
    assert q.config == {"kind": "finite_scalar", "levels": [8, 6, 5]}
    assert q.parameter_groups(lr=1.0, codebook_lr=1.0) == q.codebook_parameters() == list(q.parameters()) == []
    q.load_state_dict(load(save(q.state_dict())))
    with torch.device("meta"):
        built = FiniteScalarQuantizer([8, 6, 5])
    built.to_empty(device="cpu")
    z = features(100, [8, 6, 5])
    assert torch.equal(built(z).z_q, q(z).z_q)
    quantized, terms = q(z, return_terms=True)
    assert terms == {}
    assert not quantized.loss.requires_grad


def test_inside_heads():
    inner = FiniteScalarQuantizer([8, 5])
    z = torch.randn(10, 6)
    z_q, indices, loss = MultiHeadQuantizer(inner, 3)(z)
    assert torch.equal(indices, inner.encode(z.view(30, 2)).view(10, 3))
    assert torch.equal(z_q, inner.decode(indices.view(-1)).view(10, 6))
    assert loss == 0


# nasty and bad -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 3, 3, 5), (2, 3, 0, 5)])
def test_no_vectors(shape):
    q = FiniteScalarQuantizer([8, 6, 5])
    z = torch.zeros(shape, requires_grad=True)
    z_q, indices, loss = q(z)
    (z_q.sum() + loss).backward()
    assert z_q.shape == shape
    assert z.grad is not None
    assert z.grad.shape == shape
    assert q.decode(indices).shape == shape


def test_huge_and_broken_numbers():
    q = FiniteScalarQuantizer([8, 5])
    z = torch.tensor([[1e4, -1e4], [math.inf, -math.inf], [math.nan, 0.1], [0.1, 0.1]], requires_grad=True)
    z_q, indices, _ = q(z)
    assert z_q.tolist() == [[0.75, -1], [0.75, -1], [-1, 0], [0, 0]]
    assert torch.equal(q.decode(indices), z_q)
    z_q.sum().backward()
    assert z.grad is not None
    assert z.grad[[0, 1, 3]].isfinite().all()
    assert z.grad[2].isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        (8, TypeError, "expected levels to be a list of ints, got 8"),
        ([8, 5.0], TypeError, r"expected levels to be a list of ints, got \[8, 5.0\]"),
        ([8, True], TypeError, r"expected levels to be a list of ints, got \[8, True\]"),
        ([], ValueError, r"expected levels, from 2 to 1000 each, got \[\]"),
        ([8, 1], ValueError, r"expected levels, from 2 to 1000 each, got \[8, 1\]"),
        ([1001], ValueError, r"expected levels, from 2 to 1000 each, got \[1001\]"),
        ([256] * 4, ValueError, r"expected levels whose product is less than 2\^31, got .* with 4294967296"),
    ],
)
def test_levels_that_make_no_grid_are_refused(levels, error, message):
    with pytest.raises(error, match=f"^FiniteScalarQuantizer: {message}"):
        FiniteScalarQuantizer(levels)


def test_residuals_are_refused():
    with pytest.raises(ValueError, match=r"^MultiScaleQuantizer: expected inner with codes that can take the scale"):
        MultiScaleQuantizer(FiniteScalarQuantizer([8, 5]), (1, 2))


def test_features_and_indices_that_do_not_fit_are_refused():
    q = FiniteScalarQuantizer([8, 5])
    with pytest.raises(ValueError, match=r"^FiniteScalarQuantizer: expected z \[B, 2, h, w\]"):
        q(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"^FiniteScalarQuantizer.decode: expected indices from 0 to 39, got 0 to 40"):
        q.decode(torch.tensor([0, 40]))
