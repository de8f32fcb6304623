"""SinkhornQuantizer against the definition of Sinkhorn's assignment and the loss forms written out in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from cases import DEVICES, assert_close, features
from vqdm_cuda.quantizers import MultiScaleQuantizer, SinkhornQuantizer
from vqdm_cuda.quantizers import cross_entropy as cross_entropy_module
from vqdm_cuda.quantizers.cross_entropy import distance_cross_entropy
from vqdm_cuda.reference.sinkhorn import sinkhorn as reference

K, D = 24, 4


def quantizer(**options: Any) -> SinkhornQuantizer:
    torch.manual_seed(0)
    return SinkhornQuantizer(K, D, **options)


def far_features(N: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows about a place away from the codes, so that few codes are the nearest of any."""
    torch.manual_seed(1)
    return features(N, D, dtype, offset=1.5, scale=0.5)


def effective(q: SinkhornQuantizer) -> Tensor:  # [K, d] float64
    e = q.weight.double()
    if q.linear_map is None:
        return e
    return e @ q.linear_map.weight.double().T + q.linear_map.bias.double()


def nearest(z: Tensor, e: Tensor) -> Tensor:
    return (z.double()[:, None] - e.double()).square().sum(-1).argmin(1)


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"linear_map": False},
        {"cost": "sqeuclidean", "normalize": "dim", "eps": 0.7, "num_iters": 3},
        {"floor": 1e-8},
        {"normalize": None},
    ],
    ids=str,
)
def test_training_assigns_by_sinkhorn_and_evaluation_by_distance(options, device):
    q, z = quantizer(**options).double().to(device), far_features(dtype=torch.float64).to(device)
    asked = {name: value for name, value in options.items() if name != "linear_map"}
    transported = reference(z.cpu(), q.codebook.detach().cpu(), **asked)[2].to(device)
    by_distance = nearest(z, effective(q))
    assert (transported != by_distance).float().mean() > 0.3  # else the test would not tell them apart
    trained = q(z)
    assert torch.equal(trained.indices, transported)
    assert torch.equal(trained.z_q, q.codebook[transported])
    assert torch.equal(q.encode(z), by_distance)  # of a module in training mode too
    q.eval()
    evaluated = q(z)
    assert torch.equal(evaluated.indices, by_distance)
    assert torch.equal(q.encode(z), by_distance)
    assert torch.equal(q.decode(by_distance), evaluated.z_q)


def test_sinkhorn_uses_codes_that_the_nearest_code_leaves():
    q, z = quantizer(), far_features(480)
    assert len(q(z).indices.unique()) >= K - 1
    assert len(q.encode(z).unique()) <= K / 3


def test_sinkhorn_at_evaluation_is_an_option_and_depends_on_the_batch():
    q, z = quantizer(sinkhorn_at_evaluation=True), far_features()
    trained = q(z).indices
    q.eval()
    assert torch.equal(q(z).indices, trained)
    assert not torch.equal(torch.cat([q(z[:100]).indices, q(z[100:]).indices]), trained)
    assert torch.equal(q.encode(z), nearest(z, effective(q)))


def test_the_codebook_starts_as_published():
    torch.manual_seed(0)
    q = SinkhornQuantizer(4096, 16)
    assert q.linear_map is not None
    assert q.weight.std().item() == pytest.approx(1, rel=0.02)
    assert q.linear_map.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert 0 < q.linear_map.bias.abs().max() <= 16**-0.5
    assert_close(q.codebook, effective(q), 1e-6)
    assert len(q.codebook_parameters()) == 3
    assert len(SinkhornQuantizer(9, 2, linear_map=False).codebook_parameters()) == 1
    assert SinkhornQuantizer(4096, 16, init_bound=0.1).weight.abs().max() <= 0.1


@pytest.mark.parametrize("linear_map", [True, False])
def test_a_reset_draws_codes_and_map_as_the_constructor_does(linear_map):
    q = quantizer(linear_map=linear_map)
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(0)
    q.reset_parameters()
    fresh = quantizer(linear_map=linear_map)
    assert torch.equal(q.weight, fresh.weight)
    assert torch.equal(q.codebook, fresh.codebook)


@pytest.mark.parametrize("linear_map", [True, False])
def test_it_starts_at_given_codes(linear_map):
    q, codes = quantizer(linear_map=linear_map), torch.randn(K, D)
    q.start_at(codes)
    assert torch.equal(q.codebook, codes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("loss_form", ["l2", "l1", "ce"])
@pytest.mark.parametrize("linear_map", [True, False])
def test_loss_forms(loss_form, training, linear_map):
    """Value and gradient of each side: commitment to z alone, codebook to codes and map alone."""
    q = quantizer(loss_form=loss_form, linear_map=linear_map, commitment_weight=0.7, codebook_weight=0.3)
    q.double().train(training)
    z = far_features(50, torch.float64).requires_grad_()
    (_, indices, loss), terms = q(z, return_terms=True)
    sides = [(z, effective(q).detach(), 0.7), (z.detach(), effective(q), 0.3)]
    values = []
    for rows, e, weight in sides:
        if loss_form == "ce":
            error = F.cross_entropy(-(rows[:, None] - e).norm(dim=-1), indices)
        else:
            difference = rows - e[indices]
            error = (difference.square() if loss_form == "l2" else difference.abs()).mean()
        values.append(weight * error)
    assert_close(torch.stack([terms["commitment"], terms["codebook"]]), torch.stack(values), 1e-6)
    leaves = [z, *q.parameters()]
    got = torch.autograd.grad(loss, leaves, retain_graph=True)
    expected = torch.autograd.grad(sum(values, torch.zeros(())), leaves)
    assert_close(loss, sum(values, torch.zeros(())), 1e-12)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-10)


def test_z_q_is_the_code_with_a_straight_gradient():
    q, z = quantizer(commitment_weight=0.0, codebook_weight=0.0), far_features(30).requires_grad_()
    weights = torch.randn(30, D)
    (q(z).z_q * weights).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weights)


def test_sampled_indices_follow_the_plan_and_the_seed():
    q = quantizer(sample=True, eps=0.5, linear_map=False)
    z = torch.cat([far_features(1).expand(3000, D), far_features(9)])
    torch.manual_seed(5)
    first, second = q(z).indices, q(z).indices
    torch.manual_seed(5)
    again = q(z).indices
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    _, g, _ = reference(z, q.weight, eps=0.5)
    cost = (z[:1].double() - q.weight.double()).norm(dim=1)
    std = (z.double()[:, None] - q.weight.double()).norm(dim=2).std()
    p = torch.softmax((g.double() - cost / (std + 1e-6)) / 0.5, 0)
    share = first[:3000].bincount(minlength=K).double() / 3000
    assert (share - p).abs().max() < 5 * 0.5 / 3000**0.5  # five sigma of a coin's share


# gradients of the cross entropy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 1 << 20])  # several blocks of rows, and one
def test_gradients_of_the_cross_entropy(monkeypatch, block):
    monkeypatch.setattr(cross_entropy_module, "_BLOCK", block)
    z, e = features(9, 3).requires_grad_(), features(5, 3).requires_grad_()
    indices = torch.randint(5, (9,))
    for side, leaf in enumerate((z, e)):
        inputs = [x if x is leaf else x.detach() for x in (z, e)]

        def error(x: Tensor, side: int = side, inputs: list[Tensor] = inputs) -> Tensor:
            return distance_cross_entropy(*[x if i == side else inputs[i] for i in (0, 1)], indices)[side]  # type: ignore[call-arg]

        assert torch.autograd.gradcheck(error, (leaf,))


def test_gradients_of_the_cross_entropy_are_finite_where_a_feature_is_a_code():
    e = features(5, 3).requires_grad_()
    z = e.detach()[[0, 1, 1]].requires_grad_()
    commitment, codebook = distance_cross_entropy(z, e, torch.tensor([0, 1, 2]))
    (commitment + codebook).backward()
    assert z.grad is not None
    assert e.grad is not None
    assert z.grad.isfinite().all()
    assert e.grad.isfinite().all()
    assert z.grad.abs().max() > 0


def test_the_cross_entropy_of_no_rows_is_zero():
    z, e = torch.zeros(0, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    commitment, codebook = distance_cross_entropy(z, e, torch.zeros(0, dtype=torch.int64))
    (commitment + codebook).backward()
    assert commitment == codebook == 0
    assert e.grad is not None
    assert torch.equal(e.grad, torch.zeros(5, 3))


def test_float32_gradients_far_from_the_origin_keep_their_digits():
    z, e = features(64, 8, offset=100.0), features(512, 8, offset=100.0)
    z32, e32 = z.float().requires_grad_(), e.float().requires_grad_()
    z64, e64 = z32.detach().double().requires_grad_(), e32.detach().double().requires_grad_()
    indices = torch.randint(512, (64,))
    for a, b in ((z32, e32), (z64, e64)):
        sum(distance_cross_entropy(a, b, indices), torch.zeros(())).backward()
    for narrow, wide in ((z32, z64), (e32, e64)):
        assert narrow.grad is not None
        assert wide.grad is not None
        assert_close(narrow.grad, wide.grad, 1e-5)


# properties ----------------------------------------------------------------------------------------------------------


def test_tokens_are_equal_to_the_bit_for_any_split_and_order():
    q, z = quantizer(), far_features(257)
    for mode in (True, False):
        q.train(mode)
        tokens = q.encode(z)
        for sizes in ([1] * 257, [256, 1], [100, 0, 157]):
            assert torch.equal(torch.cat([q.encode(part) for part in z.split(sizes)]), tokens)
        order = torch.randperm(257)
        assert torch.equal(q.encode(z[order]), tokens[order])
    assert torch.equal(torch.cat([q(part).z_q for part in z.split(50)]), q(z).z_q)


def test_narrow_types_are_quantised_in_float32_whatever_the_autocast():
    q, z = quantizer(loss_form="ce"), far_features(50).bfloat16()
    wide = q(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        narrow = q(z)
        assert torch.equal(q.codebook, q.codebook.float())
        assert torch.equal(q.encode(z), q.encode(z.float()))
    assert narrow.z_q.dtype == torch.bfloat16
    assert torch.equal(narrow.indices, wide.indices)
    assert torch.equal(narrow.loss, wide.loss)
    half = q.bfloat16()
    assert half.codebook.dtype == torch.float32
    assert half(z.float()).z_q.dtype == torch.float32


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_the_gradient_of_ce_keeps_its_digits_close_to_codes(distance):
    """Where a feature all but lies on a code, which is what training comes to."""
    e = torch.randn(64, D)
    z = e[torch.randint(0, 64, (50,))] + distance * torch.randn(50, D)
    indices = torch.randint(0, 64, (50,))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = z.to(dtype).requires_grad_(), e.to(dtype).requires_grad_()
        commitment, codebook = distance_cross_entropy(*leaves, indices)
        gradients.append(torch.autograd.grad(commitment + codebook, leaves))
    wide = z.double().requires_grad_(), e.double().requires_grad_()
    logits = -torch.cdist(*wide, compute_mode="donot_use_mm_for_euclid_dist")
    gradients.append(torch.autograd.grad(F.cross_entropy(logits, indices), wide))
    for narrow, ours, textbook in zip(*gradients, strict=True):
        assert_close(ours, textbook, 1e-8)
        assert_close(narrow, textbook, 1e-6)


def test_evaluation_draws_nothing():
    """Tokens at evaluation may depend on the batch, where asked for, but not on chance."""
    q = quantizer(sample=True, sinkhorn_at_evaluation=True).eval()
    z = torch.randn(200, D)
    assert torch.equal(q(z).indices, q(z).indices)
    q.train()
    assert not torch.equal(q(z).indices, q(z).indices)


def test_no_features():
    for loss_form in ("l2", "l1", "ce"):
        q = quantizer(loss_form=loss_form)
        z_q, indices, loss = q(torch.zeros(0, D, 3, 3, requires_grad=True))
        loss.backward()
        assert z_q.shape == (0, D, 3, 3)
        assert indices.shape == (0, 3, 3)
        assert loss == 0


def test_a_few_steps_spread_the_codes_over_the_features():
    z = far_features(600)
    used, error = {}, {}
    for name in ("transport", "nearest"):
        q = quantizer(linear_map=False)
        if name == "nearest":
            q.eval()
        optimizer = torch.optim.Adam(q.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            q(z).loss.backward()
            optimizer.step()
        used[name] = len(q.encode(z).unique())
        error[name] = (q.eval()(z).z_q - z).square().mean().item()
    assert used["transport"] == K > 2 * used["nearest"]
    assert error["transport"] < 0.7 * error["nearest"]


# start_step ----------------------------------------------------------------------------------------------------------


def test_before_start_step_z_passes_unquantised():
    q, z = quantizer(start_step=2), far_features(30)
    for expected in (True, True, False):
        rows = z.clone().requires_grad_()
        z_q, indices, loss = q(rows)
        assert torch.equal(z_q, z) == expected
        assert loss > 0
        assert indices.shape == (30,)
        (gradient,) = torch.autograd.grad(z_q.sum(), rows)
        assert torch.equal(gradient, torch.ones_like(z))
    fresh = quantizer(start_step=2).eval()
    assert torch.equal(fresh(z).z_q, fresh.decode(fresh.encode(z)))  # evaluation quantises, and counts nothing
    assert fresh.num_passes == 0


def test_the_passes_are_saved_and_go_on():
    q, z = quantizer(start_step=3, loss_form="l1"), far_features(30)
    q(z)
    again = quantizer(start_step=3, loss_form="l1")
    again.load_state_dict(load(save(q.state_dict())))
    for expected in (True, True, False, False):
        left, right = q(z), again(z)
        assert torch.equal(left.z_q, z) == expected
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert "num_passes" not in quantizer().state_dict()


# with several scales -------------------------------------------------------------------------------------------------


def test_scales_are_assigned_over_the_batch_in_training_and_each_image_alone_else():
    torch.manual_seed(0)
    q = MultiScaleQuantizer(SinkhornQuantizer(K, D, loss_form="l1"), (1, 2, 4))
    z = far_features(6 * 16).view(6, 4, 4, D).permute(0, 3, 1, 2)
    first = z.mean((2, 3))
    trained = q(z)
    assert torch.equal(trained.indices[0].flatten(), reference(first, q.codebook.detach())[2])
    trained.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in q.parameters())
    q.eval()
    tokens = q.encode(z)
    assert torch.equal(tokens[0].flatten(), nearest(first, q.codebook))
    assert all(torch.equal(a, b) for a, b in zip(q(z).indices, tokens, strict=True))
    for b in range(6):
        assert all(torch.equal(t[b : b + 1], s) for t, s in zip(tokens, q.encode(z[b : b + 1]), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_form": "ce"}, "expected inner loss_form 'l2' or 'l1'"),
        ({"sinkhorn_at_evaluation": True}, "expected inner without sinkhorn_at_evaluation"),
        ({"start_step": 3}, "expected inner start_step 0, .* got 3"),
    ],
)
def test_what_scales_cannot_follow_is_refused(options, message):
    with pytest.raises(ValueError, match=f"MultiScaleQuantizer: {message}"):
        MultiScaleQuantizer(quantizer(**options), (1, 2))


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, "expected eps > 0 and floor >= 0"),
        ({"eps": "x"}, TypeError, "expected eps to be a number, got str"),
        ({"num_iters": -1}, ValueError, r"expected num_iters from 0 to 2\^31, got -1"),
        ({"num_iters": 1.0}, TypeError, "expected num_iters to be an int, got float"),
        ({"cost": "cosine"}, ValueError, "expected cost to be one of .* got 'cosine'"),
        ({"normalize": "all"}, ValueError, "expected normalize to be one of .* got 'all'"),
        ({"stats": "rank"}, ValueError, "expected stats to be one of .* got 'rank'"),
        ({"floor": -1.0}, ValueError, "expected eps > 0 and floor >= 0"),
        ({"loss_form": "huber"}, ValueError, "expected loss_form to be one of .* got 'huber'"),
        ({"start_step": -1}, ValueError, r"expected start_step from 0 to 2\^62, got -1"),
        ({"start_step": 1.5}, TypeError, "expected start_step to be an int, got float"),
        ({"sample": "yes"}, TypeError, "expected sample to be true or false, got str"),
        ({"linear_map": 1}, TypeError, "expected linear_map to be true or false, got int"),
        ({"commitment_weight": -1.0}, ValueError, "expected commitment_weight to be finite and not negative"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=f"SinkhornQuantizer: {message}"):
        quantizer(**options)
