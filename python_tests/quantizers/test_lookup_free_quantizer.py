"""LookupFreeQuantizer against the published formulas over all 2^d codes and against vector-quantize-pytorch."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

import gloo_ranks
from cases import DEVICES, assert_close
from vqdm_cuda.quantizers import LookupFreeQuantizer, MultiHeadQuantizer, MultiScaleQuantizer, bit_entropy
from vqdm_cuda.quantizers.bit_entropy import entropy_of_mean, mean_entropy


def all_codes(d: int) -> Tensor:
    """[2^d, d] float64, the first dimension the lowest bit."""
    return 2.0 * (torch.arange(2**d)[:, None] >> torch.arange(d) & 1).double() - 1


def written_out(z: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(commitment, mean entropy, entropy of the mean) of z [N, d] in float64, over all 2^d codes."""
    z = z.double()
    log_p = torch.log_softmax(2 * z @ all_codes(z.shape[1]).T / temperature, 1)
    mean = log_p.exp().mean(0)
    sign = torch.where(z > 0, 1.0, -1.0).detach()
    batch = -(mean * mean.clamp_min(1e-300).log()).sum()
    return (z - sign).square().mean(), -(log_p.exp() * log_p).sum(1).mean(), batch


def features(N: int, d: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(N, d, dtype=torch.float64, generator=torch.Generator().manual_seed(N + d))


# values and gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", [1, 2, 5, 13])
def test_codes_and_indices_are_those_of_the_signs(d, device):
    z = features(300, d).float().to(device)
    z[:d] = torch.eye(d)  # zeros count as -1
    little, big = LookupFreeQuantizer(d).to(device), LookupFreeQuantizer(d, bit_order="big").to(device)
    bits = (z > 0).long()
    for q, powers in ((little, [2**j for j in range(d)]), (big, [2 ** (d - 1 - j) for j in range(d)])):
        z_q, indices, _ = q(z)
        assert torch.equal(indices, (bits * torch.tensor(powers, device=device)).sum(1))
        assert torch.equal(z_q, 2.0 * bits - 1)
        assert torch.equal(q.decode(indices), z_q)
        assert torch.equal(q.encode(z), indices)
    codes = all_codes(d).float().to(device)
    assert torch.equal(little.codebook, codes)
    assert torch.equal(big.codebook, codes.flip(1))


@pytest.mark.parametrize("d", [1, 2, 7, 10])
@pytest.mark.parametrize(("scale", "temperature"), [(0.02, 0.01), (1.0, 0.5), (1.0, 0.01)])
def test_the_loss_is_that_of_all_codes_written_out(d, scale, temperature):
    """Value and gradient, in float64: the factors of the probabilities in place of all 2^d of them."""
    options: dict[str, Any] = {"entropy_weight": 0.3, "diversity_weight": 0.7, "temperature": temperature}
    q = LookupFreeQuantizer(d, commitment_weight=0.2, **options)
    z = features(50, d, scale).requires_grad_()
    (_, _, loss), terms = q(z, return_terms=True)
    commitment, sample, batch = written_out(z, temperature)
    wanted = {"commitment": 0.2 * commitment, "sample_entropy": 0.3 * sample, "batch_entropy": -0.21 * batch}
    assert list(terms) == list(wanted)
    for name, value in wanted.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-12)
    total = sum(wanted.values(), torch.zeros(()))
    torch.testing.assert_close(loss, total, rtol=1e-12, atol=1e-14)
    got, expected = (torch.autograd.grad(x, z)[0] for x in (loss, total))
    assert_close(got, expected, 1e-11)


@pytest.mark.parametrize("d", [6, 10])
def test_float32_is_close_to_float64(d):
    q, z = LookupFreeQuantizer(d), features(3000, d, 0.05).requires_grad_()
    wide, narrow = q(z).loss, q(z.float()).loss
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-5)
    assert_close(torch.autograd.grad(narrow, z)[0], torch.autograd.grad(wide, z)[0], 1e-4)


@pytest.mark.parametrize("d", [1, 4, 5])
def test_the_entropies_have_the_derivatives_of_their_values(d):
    logits = features(7, d, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(mean_entropy, logits)
    assert torch.autograd.gradcheck(entropy_of_mean, logits)


def test_blocks_of_vectors_add_up(monkeypatch):
    logits = features(200, 7, 3.0).requires_grad_()
    whole = entropy_of_mean(logits)
    monkeypatch.setattr(bit_entropy, "_BLOCK_ON_CPU", 16 * 13)  # 13 vectors of 2^4 numbers
    blocks = entropy_of_mean(logits)
    torch.testing.assert_close(blocks, whole, rtol=1e-14, atol=0)
    got, wanted = (torch.autograd.grad(x, logits)[0] for x in (blocks, whole))
    assert_close(got, wanted, 1e-13)


def test_twenty_steps_of_training_are_those_of_the_written_out_loss():
    torch.manual_seed(0)
    inputs, start = torch.randn(20, 64, 6), torch.randn(6, 5)
    q = LookupFreeQuantizer(5, temperature=1.0)
    weights, losses = [], []
    for dtype in (torch.float32, torch.float64):
        weight = start.to(dtype, copy=True).requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for x in inputs.to(dtype):
            z = x @ weight
            if dtype == torch.float32:
                z_q, _, loss = q(z)
            else:
                commitment, sample, batch = written_out(z, 1.0)
                loss = 0.25 * commitment + 0.1 * (sample - batch)
                z_q = z + (torch.where(z > 0, 1.0, -1.0) - z).detach()
            loss = loss + (z_q - x[:, :5]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        weights.append(weight.detach().double())
    assert losses[:20] == pytest.approx(losses[20:], rel=1e-5)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert (weights[0] - start).abs().max() > 0.1


@pytest.mark.parametrize(("temperature", "scale", "tolerance"), [(1.0, 0.1, 1e-5), (0.01, 1.0, 2e-3)])
def test_values_and_gradients_are_those_of_vector_quantize_pytorch(temperature, scale, tolerance):
    """To rounding where every code has a probability of 1e-5 and more. Below that the peer takes -p log 1e-5 for
    -p log p, which at its usual temperature moves its loss by as much as the looser tolerance."""
    peer = pytest.importorskip("vector_quantize_pytorch").LFQ(dim=6, commitment_loss_weight=0.25).train()
    ours = LookupFreeQuantizer(6, bit_order="big", temperature=temperature)
    z = features(1024, 6, scale).float().requires_grad_()
    upstream = torch.randn_like(z)
    got, wanted = ours(z[None]), peer(z[None], inv_temperature=1 / temperature)
    torch.testing.assert_close(got.z_q, wanted.quantized, rtol=0, atol=1e-6)
    assert torch.equal(got.indices, wanted.indices.long())
    torch.testing.assert_close(got.loss, wanted.entropy_aux_loss, rtol=tolerance, atol=tolerance)
    assert torch.equal(*(torch.autograd.grad(x[0], z, upstream[None], retain_graph=True)[0] for x in (got, wanted)))
    gradient, peers = (torch.autograd.grad(x[2], z)[0] for x in (got, wanted))
    assert_close(gradient, peers, 30 * tolerance)
    assert torch.equal(ours.codebook, peer.codebook)


# properties ----------------------------------------------------------------------------------------------------------


def test_terms_are_left_out_with_their_weights():
    z = features(20, 4).float()
    assert list(LookupFreeQuantizer(4, entropy_weight=0)(z, return_terms=True)[1]) == ["commitment"]
    terms = LookupFreeQuantizer(4, diversity_weight=0)(z, return_terms=True)[1]
    assert list(terms) == ["commitment", "sample_entropy"]


def test_an_index_depends_on_its_vector_alone():
    q = LookupFreeQuantizer(9).eval()
    z = features(500, 9).float()
    indices, order = q.encode(z), torch.randperm(500)
    assert torch.equal(q.encode(z[order]), indices[order])
    assert torch.equal(torch.cat([q.encode(part) for part in z.split(7)]), indices)
    assert torch.equal(q.encode(torch.empty(500, 18)[:, ::2].copy_(z)), indices)
    assert torch.equal(q.train()(z).indices, indices)


def test_layouts_agree():
    q = LookupFreeQuantizer(4)
    z = torch.randn(2, 4, 3, 5)
    first, last = q(z), q(z.permute(0, 2, 3, 1).reshape(2, 15, 4))
    assert torch.equal(first.indices.view(2, 15), last.indices)
    assert torch.equal(first.z_q.permute(0, 2, 3, 1).reshape(2, 15, 4), last.z_q)
    assert torch.equal(q.decode(first.indices), first.z_q)
    assert torch.equal(first.loss, last.loss)


@pytest.mark.parametrize("d", [30, 52])
def test_many_bits_without_a_law_of_all_codes(d):
    q = LookupFreeQuantizer(d, diversity_weight=0)
    z = features(100, d).float()
    z_q, indices, loss = q(z)
    assert torch.equal(indices, ((z > 0).long() << torch.arange(d)).sum(1))
    assert torch.equal(q.decode(indices), z_q)
    assert loss.isfinite()


def test_narrow_types_are_quantised_in_float32_whatever_the_autocast():
    q, z = LookupFreeQuantizer(6), features(100, 6).bfloat16()
    wide = q(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        narrow = q(z)
    assert narrow.z_q.dtype == torch.bfloat16
    assert narrow.loss.dtype == torch.float32
    assert torch.equal(narrow.loss, wide.loss)
    assert torch.equal(narrow.indices, wide.indices)
    gradients = []
    for autocast in (False, True):  # the backward pass inside it too
        leaf = z.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            gradients.append(torch.autograd.grad(q(leaf).loss, leaf)[0])
    assert torch.equal(*gradients)
    cast = copy.deepcopy(LookupFreeQuantizer(18, entropy_weight=0)).half()
    assert torch.equal(cast.encode(torch.ones(1, 18)), torch.tensor([2**18 - 1]))
    assert cast.decode(torch.tensor([5])).dtype == torch.float32
    assert q.double().codebook.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiles_into_one_graph(dtype):
    q = LookupFreeQuantizer(5, temperature=0.3)
    z = torch.randn(2, 5, 3, 5, dtype=dtype, requires_grad=True)
    plain, compiled = q(z), torch.compile(q, fullgraph=True, backend="aot_eager")(z)
    assert torch.equal(plain.z_q, compiled.z_q)
    assert torch.equal(plain.indices, compiled.indices)
    wanted, got = (torch.autograd.grad(x.loss + x.z_q.square().sum(), z)[0] for x in (plain, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)
    torch.compiler.reset()


def test_there_is_nothing_to_train_and_nothing_to_save():
    q = LookupFreeQuantizer(6, bit_order="big", entropy_weight=0.2)
    config = q.config
    assert config.pop("kind") == "lookup_free"
    with torch.device("meta"):
        built = LookupFreeQuantizer(**config)
    built.to_empty(device="cpu").load_state_dict(load(save(q.state_dict())))
    z = features(30, 6).float()
    assert torch.equal(built(z).indices, q(z).indices)
    assert torch.equal(built(z).loss, q(z).loss)
    assert built.config == q.config
    assert q.parameter_groups(lr=1.0, codebook_lr=1.0) == q.codebook_parameters() == list(q.parameters()) == []


def test_inside_heads():
    inner = LookupFreeQuantizer(3)
    z = features(10, 6).float()
    z_q, indices, loss = MultiHeadQuantizer(inner, 2)(z)
    pieces = inner(z.view(20, 3))
    assert torch.equal(indices.view(-1), pieces.indices)
    assert torch.equal(z_q.view(20, 3), pieces.z_q)
    assert torch.equal(loss, pieces.loss)


# over ranks ----------------------------------------------------------------------------------------------------------

SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(20, 20), (31, 9), (0, 40), (0, 0)],
    4: [(10, 10, 10, 10), (7, 0, 30, 3), (0, 0, 40, 0), (0, 0, 0, 0)],
}


def train_step(q: LookupFreeQuantizer, z: Tensor) -> dict[str, Tensor]:
    z = z.clone().requires_grad_()
    loss = q(z).loss
    loss.backward()
    return {"loss": loss.detach(), "gradient": torch.zeros_like(z) if z.grad is None else z.grad}


def entropies_alone() -> LookupFreeQuantizer:
    """The commitment term is a mean over each rank's own vectors."""
    return LookupFreeQuantizer(5, commitment_weight=0.0, entropy_weight=1.0, diversity_weight=0.7, temperature=1.0)


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    q = entropies_alone()
    q.group = dist.group.WORLD
    out: dict[str, Tensor] = {}
    for step, split in enumerate(SPLITS[num_ranks]):
        results = train_step(q, features(sum(split), 5).split(split)[rank])
        out |= {f"{step}/{key}": value for key, value in results.items()}
    return out


@pytest.mark.parametrize("num_ranks", SPLITS)
def test_the_ranks_have_the_entropies_of_one_process(num_ranks, tmp_path):
    ranks = gloo_ranks.run(work, num_ranks, tmp_path)
    for step, split in enumerate(SPLITS[num_ranks]):
        expected = train_step(entropies_alone(), features(sum(split), 5))
        for rank in ranks:
            assert_close(rank[f"{step}/loss"], expected["loss"], 1e-13)
        # The gradient of the sum of all ranks' losses, which are equal.
        together = torch.cat([rank[f"{step}/gradient"] for rank in ranks])
        assert_close(together, num_ranks * expected["gradient"], 1e-12)


# nasty and bad -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e4, 10.0, 1e-4, 0.0])
def test_saturated_and_undecided_features_stay_finite(dtype, size):
    q = LookupFreeQuantizer(8)
    z = (size * features(64, 8).sign()).to(dtype).requires_grad_()
    (_, _, loss), terms = q(z, return_terms=True)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    if size == 0:
        assert terms["sample_entropy"].item() == pytest.approx(0.1 * 8 * math.log(2), rel=1e-5)
    if size >= 10:
        counts = q.encode(z).bincount().double() / 64
        assert terms["sample_entropy"].item() == pytest.approx(0, abs=1e-12)
        assert terms["batch_entropy"].item() == pytest.approx(-0.1 * torch.special.entr(counts).sum().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 4, 3, 5), (2, 4, 0, 5)])
def test_no_vectors_give_no_loss(shape):
    q = LookupFreeQuantizer(4)
    z = torch.zeros(shape, requires_grad=True)
    z_q, indices, loss = q(z)
    (z_q.sum() + loss).backward()
    assert z_q.shape == shape
    assert loss.item() == 0
    assert z.grad is not None
    assert q.decode(indices).shape == shape


def test_a_broken_vector_breaks_neither_its_neighbours_nor_stays_unseen():
    q = LookupFreeQuantizer(4)
    z = features(3, 4).float()
    clean = q(z)
    z[1, 2] = math.nan
    broken = q(z)
    assert torch.equal(broken.indices[[0, 2]], clean.indices[[0, 2]])
    assert torch.equal(broken.z_q[[0, 2]], clean.z_q[[0, 2]])
    assert 0 <= broken.indices[1] < 16
    assert broken.loss.isnan()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"code_dim": 4.0}, TypeError, "expected code_dim to be an int, got float"),
        ({"code_dim": True}, TypeError, "expected code_dim to be an int, got bool"),
        ({"code_dim": 0}, ValueError, "expected code_dim of at least 1, got 0"),
        ({"code_dim": 53, "entropy_weight": 0}, ValueError, "expected code_dim of at most 52, got 53"),
        ({"code_dim": 21}, ValueError, r"expected code_dim of at most 20 .* takes 2\^code_dim numbers, got 21"),
        ({"bit_order": "middle"}, ValueError, r"expected bit_order to be one of \('little', 'big'\), got 'middle'"),
        ({"commitment_weight": -1}, ValueError, "expected commitment_weight to be finite and not negative, got -1"),
        ({"entropy_weight": math.inf}, ValueError, "expected entropy_weight to be finite and not negative, got inf"),
        ({"diversity_weight": math.nan}, ValueError, "expected diversity_weight to be finite and not negative, got na"),
        ({"temperature": 0}, ValueError, "expected temperature to be finite and positive, got 0"),
    ],
)
def test_options_that_make_no_quantizer_are_refused(options, error, message):
    with pytest.raises(error, match=f"^LookupFreeQuantizer: {message}"):
        LookupFreeQuantizer(**{"code_dim": 4, **options})


def test_residuals_are_refused():
    with pytest.raises(ValueError, match=r"^MultiScaleQuantizer: expected inner with codes that can take the scale"):
        MultiScaleQuantizer(LookupFreeQuantizer(4), (1, 2))


def test_features_and_indices_that_do_not_fit_are_refused():
    q = LookupFreeQuantizer(4)
    with pytest.raises(TypeError, match=r"^LookupFreeQuantizer: expected z of a floating point type"):
        q(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^LookupFreeQuantizer.decode: expected indices from 0 to 15, got 0 to 16"):
        q.decode(torch.tensor([0, 16]))
