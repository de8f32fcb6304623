"""Statistics over the last n vectors: which they are, their gradient, what is saved, and what stays out."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from vqdm_cuda.losses import wasserstein_loss
from vqdm_cuda.quantizers import MultiScaleQuantizer, VectorQuantizer, WassersteinQuantizer

F64 = torch.float64


def quantizer(queue_size: int = 10, **options: Any) -> WassersteinQuantizer:
    torch.manual_seed(0)
    options = {"commitment_weight": 0.0, "codebook_weight": 0.0, "wasserstein_weight": 1.0} | options
    return WassersteinQuantizer(6, 3, queue_size=queue_size, **options).double()


def batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, dtype=F64, generator=generator) + i for i, n in enumerate(sizes)]


def held(q: WassersteinQuantizer) -> Tensor:
    """The vectors in the queue, oldest first."""
    assert q.queue is not None
    return q.queue.vectors[len(q.queue.vectors) - int(q.queue.filled) :]


# values --------------------------------------------------------------------------------------------------------------

SIZES = [(4, 4, 4, 4), (3, 5, 2, 7), (10, 10), (25, 1), (4, 30, 3), (0, 5, 0, 8), (9, 1, 1), (1, 1, 1, 12)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    "options", [{"grad_to": "codebook"}, {"grad_to": "both", "unbiased": True, "normalize": "features"}], ids=str
)
def test_the_loss_is_that_of_the_last_n_vectors_so_far(sizes, options):
    q = quantizer(**options)
    seen = torch.zeros(0, 3, dtype=F64)
    for z in batches(*sizes):
        z.requires_grad_()
        loss = q(z).loss
        seen = torch.cat([seen.detach(), z])[-10:]
        if len(seen) <= options.get("unbiased", 0):
            assert loss.item() == 0
            continue
        expected = wasserstein_loss(seen, q.weight, **options)
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
        got = torch.autograd.grad(loss, (z, q.weight), materialize_grads=True)
        wanted = torch.autograd.grad(expected, (z, q.weight), materialize_grads=True)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)
        assert torch.equal(held(q), seen)


@pytest.mark.parametrize("matching", ["features", "rate_distortion", "gaussian"])
def test_every_target_takes_its_statistics_from_the_queue(matching):
    options: dict[str, Any] = {"target": matching}
    if matching == "gaussian":
        options |= {"target_std": 0.2, "grad_to": "features"}
    q, plain = quantizer(**options), quantizer(0, **options)
    for z in batches(4, 4, 4):
        loss = q(z).loss
    torch.testing.assert_close(loss, plain(torch.cat(batches(4, 4, 4))[-10:]).loss, rtol=1e-12, atol=0)


def test_the_residuals_of_all_scales_share_the_queue():
    torch.manual_seed(0)
    inner = WassersteinQuantizer(20, 3, queue_size=60, commitment_weight=0.0, codebook_weight=0.0)
    q = MultiScaleQuantizer(inner, (1, 2, 4)).double()
    seen: list[Tensor] = []
    for _ in range(3):
        z = torch.randn(2, 3, 4, 4, dtype=F64)
        q(z)
        f = z.permute(0, 2, 3, 1).contiguous()
        seen += [r.reshape(-1, 3) for r in q._scan(f, q.inner.assign)[2]]
        assert torch.equal(held(inner), torch.cat(seen)[-60:])


# properties ----------------------------------------------------------------------------------------------------------


def test_evaluation_neither_reads_nor_writes_the_queue():
    q, plain = quantizer(), quantizer(0)
    first, second = batches(5, 5)
    q(first)
    before = copy.deepcopy(q.state_dict())
    assert torch.equal(q.eval()(second).loss, plain.eval()(second).loss)
    q.encode(second)
    assert all(torch.equal(before[name], value) for name, value in q.state_dict().items())
    assert not torch.equal(q.train()(second).loss, plain(second).loss)


def test_half_of_a_run_saved_and_loaded_goes_on_to_the_bit():
    q = quantizer().float()
    parts = [z.float() for z in batches(4, 4, 4, 4)]
    for z in parts[:2]:
        q(z)
    other = quantizer().float()
    other.load_state_dict(load(save(q.state_dict())))
    for z in parts[2:]:
        assert torch.equal(q(z).loss, other(z).loss)
    assert torch.equal(held(q), held(other))


def test_without_a_queue_nothing_is_saved_for_it():
    assert list(quantizer(0).state_dict()) == ["weight"]
    assert sorted(quantizer(4).state_dict()) == ["queue.filled", "queue.vectors", "weight"]


def test_backward_may_come_after_the_next_forward():
    q = quantizer(grad_to="both")
    first, second = (z.requires_grad_() for z in batches(4, 4))
    (wanted,) = torch.autograd.grad(quantizer(grad_to="both")(first).loss, first)
    loss = q(first).loss
    q(second)
    assert torch.equal(torch.autograd.grad(loss, first)[0], wanted)


def test_single_precision_holds_double_vectors_rounded():
    q = quantizer().float()
    (z,) = batches(4)
    q(z)
    assert torch.equal(held(q), z.float())


@pytest.mark.filterwarnings("ignore")
def test_compiles_with_a_break():
    q, compiled = quantizer(), quantizer()
    step = torch.compile(compiled, backend="aot_eager")
    for z in batches(4, 4, 4, 4):
        torch.testing.assert_close(step(z).loss, q(z).loss, rtol=1e-12, atol=0)
    assert torch.equal(held(compiled), held(q))


# nasty ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e300])
def test_what_is_not_finite_spoils_one_loss_and_stays_out(bad):
    q = quantizer().float()
    first, second, third = batches(4, 4, 4)
    q(first)
    second[1, 2] = bad
    assert not q(second).loss.isfinite() or bad == 1e300  # beyond single precision, but not beyond double
    assert torch.equal(held(q), torch.cat([first, second[[0, 2, 3]]]).float())
    assert q(third).loss.isfinite()


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matching", ["per_scale", "pooled_and_last"])
def test_several_sets_of_vectors_have_no_queue(matching):
    with pytest.raises(ValueError, match=f"expected matching 'pooled' with an inner .* queue, .*got '{matching}'"):
        MultiScaleQuantizer(quantizer(), (1, 2), matching=matching)
    MultiScaleQuantizer(VectorQuantizer(4, 3), (1, 2), matching=matching)


def test_features_of_another_shape_leave_the_queue_alone():
    q = quantizer()
    q(batches(4)[0])
    before = held(q).clone()
    for z in (torch.zeros(4, 2), torch.zeros(4, 3).long()):
        with pytest.raises((ValueError, TypeError)):
            q(z)
    assert torch.equal(held(q), before)
