"""ResidualQuantizer against its formula in float64, over inner quantizers that differ in what they learn from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqdm_cuda.losses import wasserstein_loss
from vqdm_cuda.ops.sinkhorn import sinkhorn
from vqdm_cuda.quantizers import (
    EMAQuantizer,
    LinearQuantizer,
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    OnlineClusteringQuantizer,
    ResidualQuantizer,
    SinkhornQuantizer,
    VectorQuantizer,
    WassersteinQuantizer,
)

F64 = torch.float64
D, K, DIM = 3, 16, 4
INNER: dict[str, Any] = {
    "vector": lambda: VectorQuantizer(K, DIM, gradient="rotation"),
    "ema": lambda: EMAQuantizer(K, DIM),
    "online": lambda: OnlineClusteringQuantizer(K, DIM),
    "linear": lambda: LinearQuantizer(K, DIM, table_dim=6),
    "wasserstein": lambda: WassersteinQuantizer(K, DIM, queue_size=500),
    "sinkhorn": lambda: SinkhornQuantizer(K, DIM),
}
# Shape of z and of its indices.
LAYOUTS = [((2, DIM, 3, 5), (2, 3, 5, D)), ((2, 7, DIM), (2, 7, D)), ((7, DIM), (7, D))]


def quantizer(kind: str = "vector", depth: int = D) -> ResidualQuantizer:
    torch.manual_seed(0)
    return ResidualQuantizer(INNER[kind](), depth)


def nearest(rows: Tensor, e: Tensor) -> Tensor:
    return (rows[:, None] - e).square().sum(-1).argmin(1)


def scan(z: Tensor, e: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows [N, d]: indices [N, D], and, by depth, residuals and sums of codes [D, N, d]."""
    indices, residuals, sums = [], [], []
    left, s = z.detach(), torch.zeros_like(z)
    for _ in range(depth):
        i = nearest(left, e.detach())
        indices.append(i)
        residuals.append(left)
        left, s = left - e.detach()[i], s + e[i]
        sums.append(s)
    return torch.stack(indices, 1), torch.stack(residuals), torch.stack(sums)


# values and gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "ema"])
def test_twenty_steps_of_training_are_those_of_the_formula(kind):
    torch.manual_seed(0)
    inner = VectorQuantizer(K, DIM) if kind == "vector" else EMAQuantizer(K, DIM, decay=0.8)
    q = ResidualQuantizer(inner, D).double()
    x, target = 2 * torch.randn(200, 6, dtype=F64), torch.randn(200, DIM, dtype=F64)
    encoders = [torch.randn(6, DIM, dtype=F64, requires_grad=True)]
    encoders.append(encoders[0].detach().clone().requires_grad_())
    e = inner.codebook.detach().clone().requires_grad_(kind == "vector")
    start, counts, sums_of_features = e.detach().clone(), torch.ones(K, dtype=F64), e.detach().clone()
    trained = [[encoders[0], *q.parameters()], [encoders[1], *([e] if kind == "vector" else [])]]
    optimizers = [torch.optim.Adam(parameters, lr=0.03) for parameters in trained]
    for _ in range(20):
        ours = q(x @ encoders[0])
        z = x @ encoders[1]
        indices, residuals, sums = scan(z, e, D)
        assert torch.equal(ours.indices, indices)
        loss = 0.25 * (z - sums.detach()).square().mean()
        if kind == "vector":
            loss = loss + (sums - z.detach()).square().mean()
        z_q = z + (sums[-1] - z).detach()
        torch.testing.assert_close((ours.z_q, ours.loss), (z_q, loss), rtol=1e-9, atol=1e-9)
        losses = (ours.loss + (ours.z_q - target).square().mean(), loss + (z_q - target).square().mean())
        for optimizer, whole in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            whole.backward()
            optimizer.step()
        if kind == "ema":  # one step of the averages, over the vectors of all depths
            one_hot = torch.nn.functional.one_hot(indices.T.flatten(), K).double()
            counts = 0.8 * counts + 0.2 * one_hot.sum(0)
            sums_of_features = 0.8 * sums_of_features + 0.2 * one_hot.T @ residuals.flatten(0, 1)
            smoothed = (counts + 1e-5) / (counts.sum() + K * 1e-5) * counts.sum()
            e = sums_of_features / smoothed[:, None]
    torch.testing.assert_close((inner.codebook, encoders[0]), (e, encoders[1]), rtol=1e-8, atol=1e-8)
    assert (e - start).abs().max() > 0.2


def test_indices_and_codes_are_those_of_vector_quantize_pytorch():
    """Its losses, one for each depth, have our commitment as their mean. What differs is not the quantisation: its
    z_q passes the gradient to z once for each depth, the published code's and ours once."""
    torch.manual_seed(0)
    q = ResidualQuantizer(EMAQuantizer(64, 8, commitment_weight=0.25), 4)
    peer = pytest.importorskip("vector_quantize_pytorch").ResidualVQ(
        dim=8, codebook_size=64, num_quantizers=4, shared_codebook=True, commitment_weight=0.25, rotation_trick=False
    )
    peer.layers[0]._codebook.embed.data.copy_(q.codebook[None])
    z = torch.randn(2, 100, 8, requires_grad=True)
    codes, indices, losses = peer.eval()(z)
    assert torch.equal(q.encode(z), indices)
    torch.testing.assert_close(q.eval()(z).z_q, codes, rtol=0, atol=1e-5)
    torch.testing.assert_close(q.decode(indices), codes, rtol=0, atol=1e-5)
    codes, _, losses = peer.train()(z, freeze_codebook=True)
    ours = q(z)
    torch.testing.assert_close(ours.loss, losses.mean(), rtol=1e-5, atol=0)
    assert torch.equal(*(torch.autograd.grad(z_q.sum(), z)[0] for z_q in (codes, 4 * ours.z_q)))


@pytest.mark.parametrize("kind", INNER)
def test_one_depth_is_the_inner_quantizer(kind):
    z = torch.randn(2, DIM, 3, 5, requires_grad=True)
    results = []
    for q in (quantizer(kind, 1).double(), quantizer(kind, 1).double().inner):
        torch.manual_seed(1)
        (z_q, indices, loss), terms = q(z.double(), return_terms=True)
        weights = torch.linspace(-1, 1, z.numel(), dtype=F64).view(z.shape)
        learnt = [z, *q.parameters()]
        gradients = torch.autograd.grad((z_q * weights).sum() + loss, learnt)
        results.append([z_q, indices.flatten(), loss, terms, gradients, list(q.buffers())])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize(("shape", "index_shape"), LAYOUTS, ids=["image", "batch", "list"])
def test_every_layout_decodes_to_the_same_bits(shape, index_shape, kind, training):
    q = quantizer(kind).train(training)
    z = torch.randn(shape, requires_grad=True)
    before = q.codebook.detach().clone()
    (z_q, indices, loss), terms = q(z, return_terms=True)
    assert z_q.shape == shape
    assert indices.shape == index_shape
    assert indices.dtype == torch.int64
    torch.testing.assert_close(sum(terms.values(), torch.zeros(())), loss.detach())
    rows_q = z_q.movedim(1, -1) if z_q.dim() == 4 else z_q
    torch.testing.assert_close(rows_q, before[indices].sum(-2))
    (loss + z_q.sum()).backward()
    assert z.grad is not None
    if not training:
        assert torch.equal(q.encode(z), indices)
        assert torch.equal(q.decode(indices), z_q)
        assert torch.equal(q.decode(indices.int()), z_q)


def test_matching_sees_the_residuals_of_all_depths_and_moves_the_features():
    torch.manual_seed(0)
    q = ResidualQuantizer(WassersteinQuantizer(K, DIM, grad_to="both", commitment_weight=0, codebook_weight=0), D)
    q = q.double()
    z = torch.randn(100, DIM, dtype=F64, requires_grad=True)
    e = q.codebook.detach().clone().requires_grad_()
    before = torch.cat([torch.zeros(1, 100, DIM), scan(z, e, D)[2][:-1].detach()])
    wanted = 0.5 * wasserstein_loss((z - before).flatten(0, 1), e)
    loss = q(z).loss
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    got = torch.autograd.grad(loss, (z, q.codebook))
    torch.testing.assert_close(got, torch.autograd.grad(wanted, (z, e)), rtol=1e-8, atol=1e-12)


def test_sinkhorn_assigns_each_depth_of_a_training_pass():
    q = quantizer("sinkhorn")
    z = torch.randn(300, DIM)
    codes, left = q.codebook.detach(), z
    indices = q(z).indices
    for t in range(D):
        assert torch.equal(indices[:, t], sinkhorn(left, codes)[2])
        left = left - codes[indices[:, t]]
    assert not torch.equal(q.encode(z), indices)


def test_gradcheck_of_the_commitment_and_of_the_codes():
    z, weight = torch.randn(7, DIM, dtype=F64, requires_grad=True), torch.randn(K, DIM, dtype=F64, requires_grad=True)
    for own, fixed in (("commitment_weight", "codebook_weight"), ("codebook_weight", "commitment_weight")):
        options: dict[str, Any] = {own: 1.0, fixed: 0.0}
        q = ResidualQuantizer(VectorQuantizer(K, DIM, **options), D).double()

        def loss(z: Tensor, weight: Tensor, q: ResidualQuantizer = q) -> Tensor:
            return torch.func.functional_call(q, {"inner.weight": weight}, (z,)).loss

        inputs = (z, weight.detach()) if own == "commitment_weight" else (z.detach(), weight)
        assert torch.autograd.gradcheck(loss, inputs)


def test_compiles_into_one_graph():
    q, z = quantizer(), torch.randn(2, DIM, 3, 5, requires_grad=True)
    plain, compiled = q(z), torch.compile(q, fullgraph=True, backend="aot_eager")(z)
    assert torch.equal(plain.z_q, compiled.z_q)
    assert torch.equal(plain.indices, compiled.indices)
    wanted, got = (torch.autograd.grad(x.loss + x.z_q.square().sum(), [z, q.codebook]) for x in (plain, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


# properties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "linear"])
def test_a_vector_has_the_same_bits_in_any_company(kind):
    q, z = quantizer(kind).eval(), torch.randn(97, DIM)
    order, strided = torch.randperm(97), torch.randn(DIM, 2, 97).permute(2, 1, 0)[:, 0].copy_(z)
    for function in (q.encode, lambda rows: q(rows).z_q):
        together = function(z)
        assert torch.equal(torch.cat([function(row[None]) for row in z]), together)
        assert torch.equal(torch.cat([function(part) for part in z.split([1, 0, 50, 46])]), together)
        assert torch.equal(function(z[order]), together[order])
        assert torch.equal(function(strided), together)


def test_every_depth_brings_the_sum_nearer():
    torch.manual_seed(0)
    q = ResidualQuantizer(VectorQuantizer(64, 2, init_std=1.0), 4)
    with torch.no_grad():
        q.codebook[0] = 0  # where no code is nearer, none is added
    z = torch.randn(500, 2)
    sums = q.codebook.detach()[q.encode(z)].cumsum(1)
    errors = (z[:, None] - sums).square().sum(-1)
    assert (errors.diff(dim=1) <= 1e-6).all()
    assert errors[:, -1].mean() < 0.1 * errors[:, 0].mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_and_autocast(dtype):
    q, z = quantizer().eval(), torch.randn(2, DIM, 4, 4).to(dtype)
    wide, narrow = q(z.float()), q(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = q(z)
        assert torch.equal(q.encode(z), wide.indices)
        assert torch.equal(q.decode(wide.indices), wide.z_q)
    for got in (narrow, cast):
        assert got.z_q.dtype == dtype
        assert torch.equal(got.indices, wide.indices)
        assert torch.equal(got.z_q, wide.z_q.to(dtype))
        assert torch.equal(got.loss, wide.loss)
    half = quantizer().to(dtype).eval()(z.float())
    assert half.z_q.dtype == torch.float32
    assert torch.equal(half.z_q, quantizer().to(dtype).decode(half.indices))


@pytest.mark.parametrize("kind", ["vector", "linear"])
@pytest.mark.parametrize(("module", "features"), [(torch.float32, F64), (F64, torch.float32)])
def test_features_of_another_width_than_the_codes(module, features, kind):
    q, z = quantizer(kind).to(module), torch.randn(200, DIM, dtype=features, requires_grad=True)
    z_q, indices, loss = q(z)
    (z_q.sum() + loss).backward()
    assert z_q.dtype == loss.dtype == features
    assert torch.equal(q.encode(z), indices)
    assert torch.equal(q.decode(indices).to(features), z_q)
    assert all(p.grad is not None and p.grad.dtype == module for p in q.parameters())


def test_facts():
    q = quantizer()
    assert (q.codebook_size, q.code_dim, q.latent_size) == (K, DIM, None)
    assert q.codebook is q.inner.weight
    assert q.config == {"kind": "residual", "inner": q.inner.config, "depth": D}
    assert "depth=3" in repr(q)
    q.group = lambda: None  # type: ignore[assignment]  # stands for a group
    assert q.inner.group is q.group
    assert [group["lr"] for group in q.parameter_groups(lr=1.0, codebook_lr=2.0)] == [2.0]


# nasty ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "ema", "wasserstein"])
@pytest.mark.parametrize("shape", [(0, DIM), (2, 0, DIM), (0, DIM, 3, 5)])
def test_no_vectors_give_no_loss(shape, kind):
    q, z = quantizer(kind), torch.zeros(shape, requires_grad=True)
    z_q, indices, loss = q(z)
    loss.backward()
    assert z_q.shape == q.decode(indices).shape == q.decode(q.encode(z)).shape == shape
    assert loss.item() == 0.0
    assert q.codebook.isfinite().all()


def test_a_broken_vector_leaves_its_neighbours_alone():
    q, z = quantizer(), torch.randn(3, DIM)
    clean = q(z)
    z[1, 2] = torch.nan
    broken = q(z)
    assert torch.equal(broken.indices[1], torch.zeros(D, dtype=torch.int64))
    assert torch.equal(broken.z_q[[0, 2]], clean.z_q[[0, 2]])
    assert broken.loss.isnan()


# bad -----------------------------------------------------------------------------------------------------------------


def test_bad_depths_and_inner_quantizers_are_refused():
    with pytest.raises(TypeError, match="ResidualQuantizer: expected depth to be an int, got bool"):
        quantizer(depth=True)
    with pytest.raises(ValueError, match="ResidualQuantizer: expected depth of at least 1, got 0"):
        quantizer(depth=0)
    for inner in (MultiScaleQuantizer(VectorQuantizer(4, 2), (1, 2)), MultiHeadQuantizer(VectorQuantizer(4, 2), 2)):
        with pytest.raises(TypeError, match=r"expected inner to quantise each vector on its own, since every depth .*"):
            ResidualQuantizer(inner, 2)
    with pytest.raises(ValueError, match=r"ResidualQuantizer: expected inner loss_form 'l2' or 'l1', .*, got 'ce'"):
        ResidualQuantizer(SinkhornQuantizer(4, 2, loss_form="ce"), 2)


def test_bad_features_and_indices_are_refused():
    q = quantizer()
    for call, name in ((q, "ResidualQuantizer"), (q.encode, "ResidualQuantizer.encode")):
        with pytest.raises(ValueError, match=rf"{name}: expected z \[B, 4, h, w\] .*, got \[2, 5, 3, 3\]"):
            call(torch.zeros(2, 5, 3, 3))
    for shape in ((2, 3, 5), (D,), (1, 1, 1, 1, D)):
        with pytest.raises(ValueError, match=r"decode: expected indices \[B, h, w, 3\], \[B, n, 3\] or \[N, 3\], got"):
            q.decode(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected indices from 0 to 15, got 16"):
        q.decode(torch.full((2, D), 16))
    with pytest.raises(TypeError, match="expected indices to be a tensor, got list"):
        q.decode([0])  # type: ignore[arg-type]
