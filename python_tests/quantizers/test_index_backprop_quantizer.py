"""IndexBackpropQuantizer against the published step written out in float64: one-hot, softmax, autograd."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gloo_ranks
from cases import DEVICES, assert_close, features
from vqdm_cuda.quantizers import IndexBackpropQuantizer, MultiHeadQuantizer, MultiScaleQuantizer
from vqdm_cuda.quantizers import soft_choice as soft_choice_module
from vqdm_cuda.quantizers.soft_choice import soft_choice

K, D = 11, 4


def quantizer(**options: Any) -> IndexBackpropQuantizer:
    torch.manual_seed(0)
    return IndexBackpropQuantizer(K, D, **options)


def entropies(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(mean of the entropies, entropy of the mean) of the softmax."""
    p = logits.softmax(1)
    return -(p * logits.log_softmax(1)).sum(1).mean(), torch.special.entr(p.mean(0)).sum()


def written_out(
    z: Tensor, e: Tensor, weights: tuple[float, float, float] = (1.0, 0.25, 0.05), temperature: float = 0.01
) -> tuple[Tensor, Tensor, Tensor]:
    """(z_q, indices, loss) as published."""
    logits = z @ e.T
    p = logits.softmax(1)
    hard = F.one_hot(logits.argmax(1), len(e)).to(p)
    z_q, z_q2 = (hard + p - p.detach()) @ e, hard @ e
    sure, even = entropies(logits / temperature)
    commitment, codebook, entropy = weights
    loss = (z_q - z).square().mean()
    loss = loss + commitment * (z_q2.detach() - z).square().mean() + codebook * (z_q2 - z.detach()).square().mean()
    return z_q, logits.argmax(1), loss + entropy * (sure - even)


# values and gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("weights", "temperature"),
    [((1.0, 0.25, 0.05), 0.01), ((0.3, 0.7, 2.0), 0.5), ((0.0, 0.0, 0.0), 0.01)],
    ids=["published", "other", "no entropy"],
)
def test_twenty_training_steps_equal_the_step_written_out(weights, temperature, device):
    """Encoder and codebook, both trained; the decoder is a fixed map."""
    names = ("commitment_weight", "codebook_weight", "entropy_weight")
    q = quantizer(temperature=temperature, **dict(zip(names, weights, strict=True))).double().to(device)
    x, target, encoder = (torch.randn(*size, dtype=torch.float64, device=device) for size in [(60, 7), (60, D), (7, D)])
    ours, theirs = (
        [encoder.clone().requires_grad_(), e] for e in (q.weight, q.weight.detach().clone().requires_grad_())
    )
    optimizers = [torch.optim.Adam(leaves, lr=0.05) for leaves in (ours, theirs)]
    chosen = set()
    for _ in range(20):
        steps = [q(x @ ours[0]), written_out(x @ theirs[0], theirs[1], weights, temperature)]
        gradients = []
        for (z_q, _, loss), leaves, optimizer in zip(steps, (ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (loss + (z_q - target).square().mean()).backward()
            gradients.append([leaf.grad for leaf in leaves])
            optimizer.step()
        (z_q, indices, loss), (wanted_z_q, wanted_indices, wanted_loss) = steps
        assert torch.equal(indices, wanted_indices)
        assert_close(z_q, wanted_z_q, 1e-9)
        assert_close(loss, wanted_loss, 1e-10)
        for got, wanted in zip(*gradients, strict=True):
            assert_close(got, wanted, 1e-8)
        chosen.add(tuple(indices.tolist()))
    assert len(chosen) > 10  # the choices moved


@pytest.mark.parametrize("block", [1, 1 << 19])  # several blocks of rows, and one
@pytest.mark.parametrize("temperature", [0.7, None])
def test_gradients_of_the_soft_choice(monkeypatch, block, temperature):
    monkeypatch.setattr(soft_choice_module, "_BLOCK_ON_CPU", block)
    monkeypatch.setattr(soft_choice_module, "_BLOCK", block)
    monkeypatch.setattr(soft_choice_module, "_LEAST_ROWS", 4)
    z, e = features(9, 3).requires_grad_(), features(5, 3).requires_grad_()
    indices = (z @ e.T).argmax(1)
    upstream = torch.randn(9, 3, dtype=torch.float64)
    if temperature is not None:

        def sums(z: Tensor, e: Tensor) -> Tensor:
            _, entropy, sums = soft_choice(z, e, e.detach()[indices], temperature)
            return torch.cat([entropy[None], sums])

        assert torch.autograd.gradcheck(sums, (z, e))
        p = (z @ e.T / temperature).softmax(1)
        assert_close(sums(z, e), torch.cat([torch.special.entr(p).sum()[None], p.sum(0)]), 1e-14)

    # The gradient of z_q is that of p e with the last e held, and no value has it: its difference is taken of that.
    def soft(z: Tensor, e: Tensor) -> Tensor:
        return ((z @ e.T).softmax(1) @ constant * upstream).sum()

    constant = e.detach().clone()
    assert torch.autograd.gradcheck(soft, (z, e))
    z_q = soft_choice(z, e, e.detach()[indices], temperature)[0]
    got, want = torch.autograd.grad((z_q * upstream).sum(), (z, e)), torch.autograd.grad(soft(z, e), (z, e))
    assert_close(got[0], want[0], 1e-14)
    assert_close(got[1], want[1], 1e-14)


def test_every_code_receives_gradient_chosen_or_not():
    for options in ({}, {"entropy_weight": 0.0}):
        q = quantizer(**options)
        z_q, indices, _ = q(torch.randn(3, D))
        z_q.sum().backward()
        assert q.weight.grad is not None
        assert len(indices.unique()) < K
        assert (q.weight.grad != 0).all()


def test_float32_gradients_keep_their_digits():
    torch.manual_seed(0)
    z, e = torch.randn(64, 32), torch.randn(512, 32) / 32**0.5
    upstream, results = torch.randn(64, 32), []
    for dtype in (torch.float32, torch.float64):
        q = IndexBackpropQuantizer(512, 32).to(dtype)
        q.set_codes(e)
        leaf = z.to(dtype, copy=True).requires_grad_()
        z_q, _, loss = q(leaf)
        ((z_q * upstream.to(dtype)).sum() + loss).backward()
        results.append((loss, leaf.grad, q.weight.grad))
    for narrow, wide in zip(*results, strict=True):
        assert_close(narrow, wide, 5e-6)


def test_terms_are_weighted_and_add_up_to_the_loss():
    q, z = quantizer(entropy_weight=0.2, temperature=0.5), torch.randn(30, D)
    quantized, terms = q(z, return_terms=True)
    assert list(terms) == ["soft", "commitment", "codebook", "sample_entropy", "batch_entropy"]
    assert torch.equal(torch.stack(list(terms.values())).sum(), quantized.loss.detach())
    assert_close(terms["codebook"], 0.25 * terms["soft"], 1e-6)
    sure, even = entropies(z @ q.weight.detach().T / 0.5)
    assert_close(terms["sample_entropy"], 0.2 * sure, 1e-5)
    assert_close(terms["batch_entropy"], -0.2 * even, 1e-5)
    assert "sample_entropy" not in quantizer(entropy_weight=0.0)(z, return_terms=True)[1]


# indices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_indices_are_those_of_the_largest_inner_products_for_any_size_of_features(scale):
    q, z = quantizer(), features(500, D, torch.float32, scale=scale)
    assert torch.equal(q(z).indices, (z.double() @ q.weight.detach().double().T).argmax(1))
    assert torch.equal(q(z).indices, q.encode(z))


def test_the_largest_inner_product_is_not_the_nearest_code():
    q = IndexBackpropQuantizer(2, 1)
    q.set_codes(torch.tensor([[1.0], [5.0]]))
    assert q.encode(torch.tensor([[1.0], [-1.0]])).tolist() == [1, 0]


def test_of_equal_logits_the_first_wins():
    q = IndexBackpropQuantizer(4, 2)
    q.set_codes(torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, -1.0], [0.0, 7.0], [-1.0, 0.0]])
    assert q.encode(z).tolist() == [0, 1, 1, 2, 0]


@pytest.mark.parametrize("scale", [1.0, 2.0**-1060])
def test_whole_numbers_are_told_apart_exactly(scale):
    """Small ones, of many equal products; scaled by a power of 2 below float64's normal numbers, too."""
    for _ in range(20):
        e, z = (torch.randint(-4, 5, (rows, 5)).double() for rows in (16, 100))
        q = IndexBackpropQuantizer(16, 5).double()
        q.set_codes(e)
        assert torch.equal(q.encode(scale * z), (z @ e.T).argmax(1))


def test_tokens_are_equal_to_the_bit_for_any_split_and_order_and_decode_to_z_q():
    q, z = quantizer(), torch.randn(257, D)
    tokens = q.encode(z)
    for mode in (True, False):
        quantized = q.train(mode)(z)
        assert torch.equal(quantized.indices, tokens)
        assert torch.equal(quantized.z_q, q.decode(tokens))
        assert torch.equal(quantized.z_q, q.weight[tokens])
    for sizes in ([1] * 257, [256, 1], [100, 0, 157]):
        assert torch.equal(torch.cat([q.encode(part) for part in z.split(sizes)]), tokens)
    order = torch.randperm(257)
    assert torch.equal(q.encode(z[order]), tokens[order])
    image = z[:240].view(2, 10, 12, D).permute(0, 3, 1, 2)
    assert torch.equal(q.encode(image).flatten(), tokens[:240])
    assert torch.equal(q(image).z_q, q.decode(tokens[:240].view(2, 10, 12)))


# properties ----------------------------------------------------------------------------------------------------------


class _LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any result of an operator has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_no_pass_stores_the_matrix_of_logits():
    N, codes = 2048, 1024
    q, z = IndexBackpropQuantizer(codes, D), torch.randn(N, D, requires_grad=True)
    with _LargestTensor() as largest:
        z_q, _, loss = q(z)
        (z_q.sum() + loss).backward()
    assert codes <= largest.numbers <= soft_choice_module._BLOCK_ON_CPU < N * codes / 2
    on_another_device = torch.empty(1 << 16, D, device="meta")
    assert len(list(soft_choice_module._blocks(1 << 14, on_another_device))) == 64


def test_narrow_types_are_quantised_in_float32_whatever_the_autocast():
    q, z = quantizer(), torch.randn(50, D).bfloat16()
    results = []
    for autocast in (False, True):
        leaf = z.float().requires_grad_()
        q.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            z_q, indices, loss = q(leaf)
            (z_q.sum() + loss).backward()  # the backward pass inside it too
            narrow = q(z)
        results.append((z_q, indices, loss, leaf.grad, q.weight.grad.clone()))  # type: ignore[union-attr]
        assert narrow.z_q.dtype == torch.bfloat16
        assert narrow.loss.dtype == torch.float32
        assert torch.equal(narrow.indices, indices)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    half = q.bfloat16()
    assert half(z.float()).z_q.dtype == torch.float32
    assert q(z.half()).z_q.dtype == torch.float16


def test_types_may_differ():
    for z_dtype, e_dtype in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        q, z = quantizer().to(e_dtype), torch.randn(20, D, dtype=z_dtype, requires_grad=True)
        z_q, _, loss = q(z)
        (z_q.sum() + loss).backward()
        assert z_q.dtype == loss.dtype == z_dtype
        assert q.weight.grad is not None
        assert q.weight.grad.dtype == e_dtype


def test_large_logits_keep_loss_and_gradients_finite():
    q = quantizer()
    z = (1e4 * torch.randn(40, D)).requires_grad_()
    with torch.no_grad():
        q.weight.mul_(1e4)
    (z_q, indices, loss), terms = q(z, return_terms=True)
    (z_q.sum() + loss).backward()
    assert torch.equal(indices, (z.double() @ q.weight.double().T).argmax(1))
    assert 0 <= terms["sample_entropy"] < 1e-3  # every choice is sure
    assert_close(terms["batch_entropy"], -0.05 * torch.special.entr(indices.bincount() / 40).sum(), 1e-3)
    for gradient in (z.grad, q.weight.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_equal_logits_have_the_entropy_of_all_codes():
    q = quantizer()
    _, terms = q(torch.zeros(5, D), return_terms=True)
    assert_close(terms["sample_entropy"], 0.05 * torch.tensor(float(K)).log(), 1e-6)
    assert_close(terms["batch_entropy"], -terms["sample_entropy"], 1e-6)


@pytest.mark.parametrize("shape", [(0, D), (2, 0, D), (0, D, 3, 5)])
def test_no_vectors_give_no_loss(shape):
    q, z = quantizer(), torch.zeros(shape, requires_grad=True)
    z_q, indices, loss = q(z)
    loss.backward()
    assert z_q.shape == q.decode(indices).shape == shape
    assert loss == 0
    assert q.weight.grad is not None
    assert torch.equal(q.weight.grad, torch.zeros(K, D))


@pytest.mark.parametrize("entropy_weight", [0.0, 0.05])
def test_a_broken_vector_breaks_no_other_token_nor_stays_unseen(entropy_weight):
    q, z = quantizer(entropy_weight=entropy_weight), torch.randn(3, D)
    clean = q(z)
    for bad in (float("nan"), float("inf")):
        z[1, 2] = bad
        rows = z.clone().requires_grad_()
        broken = q(rows)
        assert broken.indices[1] == 0
        assert torch.equal(broken.indices[[0, 2]], clean.indices[[0, 2]])
        assert not broken.loss.isfinite()
        broken.loss.backward()
        assert rows.grad is not None
        assert not rows.grad[1].isfinite().all()
        if entropy_weight == 0:  # the entropies are of all vectors together
            assert rows.grad[[0, 2]].isfinite().all()


def test_a_broken_code_is_never_chosen():
    q, z = quantizer(), torch.randn(50, D)
    with torch.no_grad():
        q.weight[3, 1] = float("nan")
        q.weight[7, 0] = float("inf")
    kept = q.weight.detach().double()[[k for k in range(K) if k not in (3, 7)]]
    assert torch.equal(q.weight.detach().double()[q.encode(z)], kept[(z.double() @ kept.T).argmax(1)])


def test_only_what_is_asked_gets_a_gradient():
    q, z = quantizer(), torch.randn(20, D)
    wanted = torch.autograd.grad(q(z.requires_grad_()).loss, (z, q.weight))
    assert torch.equal(torch.autograd.grad(q(z.detach()).loss, q.weight)[0], wanted[1])
    q.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(q(z).loss, z)[0], wanted[0])
    assert not q(z.detach()).loss.requires_grad


def test_heads_share_the_codebook():
    q = MultiHeadQuantizer(quantizer(), 2)
    z = torch.randn(2, 2 * D, 3, 3, requires_grad=True)
    z_q, indices, loss = q(z)
    assert indices.shape == (2, 3, 3, 2)
    assert torch.equal(q.decode(indices), z_q)
    assert torch.equal(loss, q.inner(z.permute(0, 2, 3, 1).reshape(-1, D)).loss)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in q.parameters())


def test_the_state_survives_safetensors_and_the_configuration_rebuilds_the_module():
    q = quantizer(commitment_weight=0.5, codebook_weight=2.0, entropy_weight=0.3, temperature=0.2, init_bound=0.5)
    config = q.config
    assert config.pop("kind") == "index_backprop"
    other = IndexBackpropQuantizer(**config)
    other.load_state_dict(load(save(q.state_dict())))
    z = torch.randn(20, D)
    assert other.config == q.config
    assert torch.equal(other(z).loss, q(z).loss)
    assert [p is q.weight for p in q.codebook_parameters()] == [True]


def test_the_codes_start_as_published():
    torch.manual_seed(0)
    assert IndexBackpropQuantizer(4096, 16).weight.std().item() == pytest.approx(1, rel=0.02)
    assert IndexBackpropQuantizer(4096, 16, init_bound=0.1).weight.abs().max() <= 0.1


def test_compiles_into_one_graph():
    q, z = quantizer(), torch.randn(2, D, 3, 5, requires_grad=True)
    plain, compiled = q(z), torch.compile(q, fullgraph=True, backend="aot_eager")(z)
    assert torch.equal(plain.z_q, compiled.z_q)
    assert torch.equal(plain.indices, compiled.indices)
    wanted, got = (torch.autograd.grad(x.loss + x.z_q.square().sum(), [z, q.weight]) for x in (plain, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


# over ranks ----------------------------------------------------------------------------------------------------------

# How many of 60 vectors each rank has, step by step: equal parts, unequal ones, none.
SPLITS: dict[int, list[tuple[int, ...]]] = {
    2: [(30, 30), (50, 10), (0, 60)],
    4: [(15, 15, 15, 15), (30, 0, 9, 21), (0, 0, 60, 0)],
}


def entropies_step(step: int, num_ranks: int = 1, rank: int = 0, group: Any = None) -> dict[str, Tensor]:
    """Loss and gradients of the entropies alone: the squares are means over each rank's own vectors."""
    torch.manual_seed(step)
    q = IndexBackpropQuantizer(K, D, entropy_weight=1.0, temperature=0.5).double()
    z = features(60, D)
    if group is not None:
        z = z.split(SPLITS[num_ranks][step])[rank]
    q.group = group
    z.requires_grad_()
    (_, indices, loss), terms = q(z, return_terms=True)
    squares = written_out(z, q.weight, (1.0, 0.25, 0.0), 0.5)[2] if len(z) else torch.zeros(())
    grad_z, grad_e = torch.autograd.grad(loss - squares, (z, q.weight))
    reported = torch.stack([terms["sample_entropy"], terms["batch_entropy"]])
    return {"reported": reported, "grad z": grad_z, "grad e": grad_e, "indices": indices}


def work(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Of all ranks, and of the first two as a group of their own."""
    out: dict[str, Tensor] = {}
    pair = dist.new_group([0, 1])
    for size, group in ((num_ranks, dist.group.WORLD), (2, pair)):
        for step in range(3 if rank < size else 0):
            results = entropies_step(step, size, rank, group)
            out |= {f"{size}/{step}/{key}": value for key, value in results.items()}
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return gloo_ranks.run(work, 4, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("num_ranks", SPLITS)
def test_the_ranks_have_the_entropies_and_gradients_of_one_process(ranks, num_ranks):
    for step in range(3):
        expected = entropies_step(step)
        got = {key: [rank[f"{num_ranks}/{step}/{key}"] for rank in ranks[:num_ranks]] for key in expected}
        for reported in got["reported"]:
            assert_close(reported, expected["reported"], 1e-6)
        assert torch.equal(torch.cat(got["indices"]), expected["indices"])
        # Of the sum of all ranks' losses, which are equal: its mean over ranks is one process's.
        assert_close(torch.cat(got["grad z"]), num_ranks * expected["grad z"], 1e-12)
        assert_close(torch.stack(got["grad e"]).sum(0), num_ranks * expected["grad e"], 1e-12)


# bad -----------------------------------------------------------------------------------------------------------------


def test_residuals_are_refused():
    with pytest.raises(ValueError, match="MultiScaleQuantizer: expected inner to pass its gradient through the chosen"):
        MultiScaleQuantizer(quantizer(), (1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"commitment_weight": -1.0}, "commitment_weight to be finite and not negative, got -1.0"),
        ({"entropy_weight": -1.0}, "entropy_weight to be finite and not negative, got -1.0"),
        ({"entropy_weight": float("nan")}, "entropy_weight to be finite and not negative, got nan"),
        ({"temperature": 0.0}, "temperature to be finite and positive, got 0.0"),
        ({"temperature": float("inf")}, "temperature to be finite and positive, got inf"),
        ({"init_std": -1.0}, "init_std to be finite and positive, got -1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"IndexBackpropQuantizer: expected {message}"):
        quantizer(**options)
