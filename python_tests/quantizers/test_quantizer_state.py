"""State that training moves (averages, usage, codes): when it moves, when it does not, and what a graph sees of it.

For the plain quantizers and inside heads, depths and scales. The update rules themselves: test_ema_quantizer.py and its
neighbours.
"""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from vqdm_cuda.quantizers import (
    EMAQuantizer,
    LinearQuantizer,
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    OnlineClusteringQuantizer,
    Quantizer,
    ResidualQuantizer,
)

K, D = 11, 4
INNER: dict[str, Any] = {
    "ema": lambda: EMAQuantizer(K, D, gradient="rotation"),
    "revived": lambda: EMAQuantizer(K, D, revive_below=1.0),
    "closest": lambda: OnlineClusteringQuantizer(K, D, anchors="closest", gradient="rotation"),
    "random": lambda: OnlineClusteringQuantizer(K, D, anchors="random"),
    "probabilistic": lambda: OnlineClusteringQuantizer(K, D, anchors="probabilistic"),
    "linear": lambda: LinearQuantizer(K, D),
}
STRUCTURES: dict[str, Any] = {
    "plain": lambda inner: inner,
    "heads": lambda inner: MultiHeadQuantizer(inner, 2),
    "depths": lambda inner: ResidualQuantizer(inner, 2),
    "scales": lambda inner: MultiScaleQuantizer(inner, (1, 2, 4), num_phi=None),
}
MOVING = [kind for kind in INNER if kind != "linear"]


def build(kind: str, structure: str = "plain") -> Quantizer:
    torch.manual_seed(0)
    return STRUCTURES[structure](INNER[kind]())


def inner_of(q: Quantizer) -> Any:
    return getattr(q, "inner", q)


def images(q: Quantizer, seed: int = 0, B: int = 3) -> Tensor:  # [B, code_dim, 4, 4]
    return torch.randn(B, q.code_dim, 4, 4, generator=torch.Generator().manual_seed(seed))


def state(q: Quantizer) -> dict[str, bytes]:
    return {name: value.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, value in
            inner_of(q).state_dict().items()}  # fmt: skip


def train_step(q: Quantizer, z: Tensor) -> tuple[Tensor, ...]:
    """z_q, loss, and the gradient of z."""
    z = z.clone().requires_grad_()
    z_q, _, loss = q(z)
    (z_q.square().mean() + loss).backward()
    assert z.grad is not None
    return z_q.detach(), loss.detach(), z.grad


# when it moves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", MOVING)
def test_a_training_pass_moves_it_once_for_all_vectors(kind, structure, monkeypatch):
    q, twin = build(kind, structure), build(kind)
    inner, calls = inner_of(q), []
    update = inner.update

    def recorded(rows: Tensor, indices: Tensor) -> None:
        calls.append((rows.clone(), indices.clone()))
        update(rows, indices)

    monkeypatch.setattr(inner, "update", recorded)
    before = state(q)
    torch.manual_seed(1)
    q(images(q))
    ((rows, indices),) = calls
    assert rows.shape == ({"plain": 48, "heads": 96, "depths": 96, "scales": 63}[structure], D)
    assert not rows.requires_grad
    assert torch.equal(indices, inner_of(build(kind)).encode(rows))
    torch.manual_seed(1)
    inner_of(twin).update(rows, indices)
    assert state(q) == state(twin) != before


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", INNER)
def test_evaluation_encoding_and_decoding_leave_it(kind, structure):
    q = build(kind, structure)
    before, z = state(q), images(q)
    tokens = q.encode(z)
    codes = q.decode(tokens)
    quantized = q.eval()(z)
    assert torch.equal(quantized.z_q, codes)
    assert state(q) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", MOVING)
def test_a_feature_that_is_not_finite_moves_nothing(kind, structure, value):
    q = build(kind, structure)
    before, z = state(q), images(q)
    z[1, 2, 3, 0] = value
    q(z)
    assert state(q) == before
    q(images(q))
    assert state(q) != before
    assert all(buffer.isfinite().all() for buffer in q.buffers())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", MOVING)
def test_codes_too_large_for_their_type_move_nothing(kind, structure):
    q = build(kind, structure).half()
    before = state(q)
    q(1e7 * images(q))
    assert state(q) == before
    q(images(q))
    assert state(q) != before
    assert all(buffer.isfinite().all() for buffer in q.buffers())


@pytest.mark.parametrize("kind", MOVING)
def test_no_features_move_nothing(kind):
    q = build(kind)
    before = state(q)
    loss = q(torch.zeros(0, D, requires_grad=True)).loss
    loss.backward()
    assert loss == 0
    assert state(q) == before


@pytest.mark.parametrize("kind", [kind for kind in MOVING if kind != "ema"])
def test_fewer_features_than_codes_to_move(kind):
    q = build(kind)
    for step in range(3):
        q(torch.full((1, D), 10.0 + step))
    assert q.codebook.isfinite().all()
    assert ((q.codebook - 12).abs() < 3).all(1).any()


# graphs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", INNER)
def test_nothing_keeps_a_graph(kind, structure):
    q = build(kind, structure)
    for step in range(2):
        train_step(q, images(q, step))
    assert all(buffer.grad_fn is None and not buffer.requires_grad for buffer in q.buffers())
    assert all(p.is_leaf and p.requires_grad and p.grad is not None for p in q.parameters())
    assert all(p.grad is not None and p.grad.grad_fn is None for p in q.parameters())


@pytest.mark.parametrize("kind", [kind for kind in INNER if kind not in ("ema", "closest")])
def test_the_gradient_is_that_of_the_codes_before_the_move(kind):
    q = build(kind).double()
    e = q.codebook.detach().clone().requires_grad_()
    z, wide = (images(q).double().requires_grad_() for _ in range(2))
    z_q, indices, loss = q(z)
    upstream = torch.randn_like(z_q)
    ((z_q * upstream).sum() + loss).backward()
    codes = e[indices].permute(0, 3, 1, 2)
    expected = 0.25 * (wide - codes.detach()).square().mean()
    if q.codebook_parameters():
        expected = expected + (codes - wide.detach()).square().mean()
    (expected + (wide * upstream).sum()).backward()
    torch.testing.assert_close(z.grad, wide.grad, rtol=1e-13, atol=1e-15)
    if isinstance(q, OnlineClusteringQuantizer):
        torch.testing.assert_close(q.weight.grad, e.grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", INNER)
def test_two_passes_before_their_backward_passes_have_the_gradients_of_each(kind, structure):
    q, one_by_one = build(kind, structure), build(kind, structure)
    features = [images(q, step).requires_grad_() for step in range(2)]
    torch.manual_seed(1)
    results = [q(z) for z in features]
    for z_q, _, loss in results:
        (z_q.square().mean() + loss).backward()
    torch.manual_seed(1)
    for step, z in enumerate(features):
        torch.testing.assert_close(train_step(one_by_one, images(q, step))[2], z.grad, rtol=0, atol=0)
    for p, other in zip(q.parameters(), one_by_one.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=0, atol=0)
    assert state(q) == state(one_by_one)


# The partition of forward and backward passes that the default backend has, which may do parts of the one in the other.
@pytest.mark.parametrize("kind", ["revived", "probabilistic", "linear"])
def test_a_compiled_module_trains_as_eager_mode_does(kind):
    q, twin = build(kind), build(kind)
    compiled: Any = torch.compile(twin, backend="aot_eager_decomp_partition")
    for step in range(2):
        results = []
        for module in (q, compiled):
            torch.manual_seed(step)
            results.append(train_step(module, images(q, step)))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
        assert state(q) == state(twin)
    alone: Any = torch.compile(twin.eval(), backend="aot_eager", fullgraph=True)
    assert torch.equal(alone(images(q)).z_q, q.eval()(images(q)).z_q)
    torch.compiler.reset()


# copies and types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", INNER)
def test_saved_and_loaded_it_trains_on_to_the_same_bits(kind, structure):
    q = build(kind, structure)
    optimizer = torch.optim.SGD(q.parameters(), lr=0.1) if list(q.parameters()) else None

    def steps(module: Quantizer, optimizer: torch.optim.Optimizer | None) -> None:
        for step in range(2):
            torch.manual_seed(step)
            module.zero_grad()
            train_step(module, images(q, step))
            if optimizer is not None:
                optimizer.step()

    steps(q, optimizer)
    other = build(kind, structure)
    assert state(other) != state(q)
    other.load_state_dict(load(save(q.state_dict())))
    twin = copy.deepcopy(q)
    assert state(q) == state(other) == state(twin)
    before = state(q)
    for module in (other, twin):
        steps(module, torch.optim.SGD(module.parameters(), lr=0.1) if optimizer is not None else None)
        assert state(q) == before != state(module)
    assert state(other) == state(twin)
    steps(q, optimizer)
    assert state(q) == state(other)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_modules_and_features_of_any_type_train(kind, structure, dtype):
    """A narrow module keeps its state narrow, and still quantises in float32."""
    q = build(kind, structure).to(dtype)
    for z_dtype in (torch.float32, dtype):
        z_q, loss, gradient = train_step(q, images(q).to(z_dtype))
        assert z_q.dtype == gradient.dtype == z_dtype
        assert loss.isfinite()
        assert gradient.isfinite().all()
    assert all(value.dtype == dtype and value.isfinite().all() for value in q.state_dict().values()
               if value.is_floating_point())  # fmt: skip
    assert q.decode(q.encode(images(q))).dtype == torch.promote_types(dtype, torch.float32)


# given codes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INNER)
def test_given_codes_start_the_state_anew(kind):
    q: Any = build(kind)
    train_step(q, images(q))
    codes = torch.randn(K, D, dtype=torch.float64)
    q.set_codes(codes)
    assert torch.equal(q.weight, codes.float())
    assert q.weight.requires_grad == isinstance(q, OnlineClusteringQuantizer)
    if isinstance(q, EMAQuantizer):
        assert torch.equal(q.counts, torch.ones(K))
        assert torch.equal(q.sums, q.weight)
        assert q.sums.data_ptr() != q.weight.data_ptr()
    if isinstance(q, OnlineClusteringQuantizer):
        assert torch.equal(q.usage, torch.zeros(K))


@pytest.mark.parametrize("kind", INNER)
def test_a_reset_starts_as_the_constructor_does(kind):
    q: Any = build(kind)
    train_step(q, images(q))
    trained = q.codebook.detach().clone()
    q.reset_parameters()
    assert not torch.equal(q.codebook, trained)
    assert q.weight.std().item() == pytest.approx(D**-0.5, rel=0.5)
    fresh = build(kind).state_dict()
    for name in ("counts", "usage"):
        assert name not in fresh or torch.equal(q.state_dict()[name], fresh[name])
    assert not isinstance(q, EMAQuantizer) or torch.equal(q.sums, q.weight)


@pytest.mark.parametrize("kind", ["ema", "closest", "linear"])
@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (torch.zeros(K, D + 1), ValueError, r"table \[11, 4\], got \[11, 5\]"),
        (torch.full((K, D), float("nan")), ValueError, r"finite numbers of torch\.float32 in table, got NaN or Inf"),
        (torch.full((K, D), 1e300, dtype=torch.float64), ValueError, r"finite numbers of torch\.float32"),
        (torch.zeros(K, D, dtype=torch.int64), TypeError, r"table to be a floating point tensor, got torch\.int64"),
        ([[0.0]], TypeError, "table to be a floating point tensor, got list"),
    ],
)
def test_bad_codes_are_refused_and_change_nothing(kind, table, error, message):
    q: Any = build(kind)
    q(images(q))
    before = state(q)
    with pytest.raises(error, match=f"{type(q).__name__}.set_codes: expected {message}"):
        q.set_codes(table)
    assert state(q) == before
