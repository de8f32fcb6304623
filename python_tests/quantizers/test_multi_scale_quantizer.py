"""MultiScaleQuantizer against VAR's loop written out with torch's own interpolation and convolution."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from cases import DEVICES
from vqdm_cuda.losses import wasserstein_loss
from vqdm_cuda.quantizers import MultiScaleQuantizer, VectorQuantizer, WassersteinQuantizer
from vqdm_cuda.quantizers.phi import places_of_scales

SCALES = (1, 2, 3, 4, 6, 8)
WEIGHTS: dict[str, Any] = {"commitment_weight": 0.3, "codebook_weight": 0.7}


def quantizer(
    scales: Any = SCALES, *, wasserstein: dict[str, Any] | None = None, **options: Any
) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    inner = VectorQuantizer(40, 5, init_std=0.7, **WEIGHTS)
    if wasserstein is not None:
        inner = WassersteinQuantizer(40, 5, init_std=0.7, **WEIGHTS, **wasserstein)
    return MultiScaleQuantizer(inner, scales, **options)


def var_loop(q: MultiScaleQuantizer, z: Tensor) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """z_q, indices, loss without matching, and residuals, as VAR's published loop computes them."""
    e, size = q.codebook, z.shape[2:]
    f_hat, rest = torch.zeros_like(z), z.detach()
    indices, residuals, loss = [], [], torch.zeros((), dtype=z.dtype)
    for t, grid in enumerate(q.scales):
        small = F.interpolate(rest, grid, mode="area")
        # The same values with a gradient to z, for the matching loss.
        residuals.append(F.interpolate(z - f_hat.detach(), grid, mode="area"))
        rows = small.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        chosen = (rows[:, None] - e[None]).square().sum(-1).argmin(1).view(-1, *grid)
        one_hot = F.one_hot(chosen, e.shape[0]).to(e.dtype)
        h = F.interpolate((one_hot @ e).permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
        if q.phi.of_scale:
            h = (1 - q.phi_ratio) * h + q.phi_ratio * q.phi[q.phi.of_scale[t]](h)
        f_hat = f_hat + h
        rest = rest - h.detach()
        loss = loss + 0.3 * F.mse_loss(f_hat.detach(), z) + 0.7 * F.mse_loss(f_hat, z.detach())
        indices.append(chosen)
    return f_hat, indices, loss / len(q.scales), residuals


def rows_of(maps: list[Tensor]) -> Tensor:
    return torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps])


# values --------------------------------------------------------------------------------------------------------------

STRUCTURES: dict[str, dict[str, Any]] = {
    "demo scales": {},
    "one phi each": {"num_phi": 0},
    "one phi": {"num_phi": 1, "phi_kernel_size": 1},
    "no phi": {"num_phi": None},
    "no share of phi": {"phi_ratio": 0.0},
    "unequal sides": {"scales": ((1, 1), (2, 1), (3, 5), (4, 6))},
    "one scale": {"scales": (3,)},
    "a size twice": {"scales": (1, 4, 4)},
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("train", [True, False])
def test_equals_the_published_loop(name, train):
    q = quantizer(**STRUCTURES[name]).double().train(train)
    z = torch.randn(3, 5, *q.latent_size, dtype=torch.float64)
    z_q, indices, loss = q(z)
    expected_z_q, expected_indices, expected_loss, _ = var_loop(q, z)
    assert [list(i.shape) for i in indices] == [[3, *grid] for grid in q.scales]
    assert all(torch.equal(a, b) for a, b in zip(indices, expected_indices, strict=True))
    torch.testing.assert_close(z_q, expected_z_q, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-13, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_equals_the_published_loop(device):
    q = quantizer().to(device)
    z = torch.randn(4, 5, 8, 8, device=device)
    z_q, indices, loss = q(z)
    q64 = copy.deepcopy(q).double().cpu()
    expected_z_q, expected_indices, expected_loss, _ = var_loop(q64, z.double().cpu())
    assert all(torch.equal(a.cpu(), b) for a, b in zip(indices, expected_indices, strict=True))
    # A GPU's convolutions may run in TF32, with 10 bits.
    rtol, atol = (1e-5, 1e-5) if device == "cpu" else (1e-2, 1e-2)
    torch.testing.assert_close(z_q.cpu().double(), expected_z_q, rtol=rtol, atol=atol)
    torch.testing.assert_close(loss.cpu().double(), expected_loss, rtol=rtol, atol=0)


def test_phi_is_shared_as_in_var():
    assert places_of_scales(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert places_of_scales(6, 4) == [0, 0, 1, 2, 3, 3]
    assert places_of_scales(4, 2) == [0, 0, 1, 1]
    assert places_of_scales(1, 1) == [0]
    for T in range(1, 17):
        assert places_of_scales(T, T) == list(range(T))


@pytest.mark.parametrize("matching", ["pooled", "per_scale", "pooled_and_last"])
def test_matching_takes_the_residuals_of_all_scales(matching):
    q = quantizer(wasserstein={"wasserstein_weight": 0.4}, matching=matching).double()
    z = torch.randn(3, 5, 8, 8, dtype=torch.float64)
    quantized, terms = q(z, return_terms=True)
    _, _, loss, residuals = var_loop(q, z)
    if matching == "pooled":
        expected = wasserstein_loss(rows_of(residuals), q.codebook)
    elif matching == "pooled_and_last":
        expected = wasserstein_loss(rows_of(residuals), q.codebook) + wasserstein_loss(
            rows_of(residuals[-1:]), q.codebook
        )
    else:
        expected = torch.stack([wasserstein_loss(rows_of([r]), q.codebook) for r in residuals]).mean()
    assert list(terms) == ["commitment", "codebook", "wasserstein"]
    torch.testing.assert_close(terms["wasserstein"].double(), 0.4 * expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(quantized.loss, loss + 0.4 * expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("weights", [[1, 1, 2, 3], [0, 0, 0, 5.0], [0.25, 0.25, 0.25, 0.25]], ids=str)
def test_scales_are_weighted_as_asked(weights):
    """By the losses of the quantizers that stop after fewer scales of the same size."""
    torch.manual_seed(0)
    scales = (2, 1, 2, 2)
    q = quantizer(scales, num_phi=None, scale_weights=weights).double()
    z = torch.randn(3, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = q(z).loss
    expected = torch.zeros((), dtype=torch.float64)
    for t, weight in enumerate(weights, 1):
        codes = [q.inner.lookup(i.flatten()).view(*i.shape, 5).permute(0, 3, 1, 2) for i in q.encode(z)[:t]]
        f_hat = torch.stack([F.interpolate(c, (2, 2), mode="bicubic") for c in codes]).sum(0)
        terms = 0.3 * F.mse_loss(f_hat.detach(), z) + 0.7 * F.mse_loss(f_hat, z.detach())
        expected = expected + weight / sum(weights) * terms
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    leaves = [z, *q.codebook_parameters()]
    got, wanted = torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    even = quantizer(scales, num_phi=None).double()
    assert (even(z).loss - loss).abs().item() < 1e-12 or len(set(weights)) > 1
    assert q.config["scale_weights"] == weights


@pytest.mark.parametrize("scales", [SCALES, (1, 2, (3, 4))])
def test_decoding_the_indices_gives_the_forward_pass_to_the_bit(scales):
    q = quantizer(scales).eval()
    z = torch.randn(5, 5, *q.latent_size)
    z_q, indices, _ = q(z)
    encoded = q.encode(z)
    assert all(torch.equal(a, b) for a, b in zip(encoded, indices, strict=True))
    assert torch.equal(q.decode(encoded), z_q)
    q.train()
    torch.testing.assert_close(q(z).z_q, z_q, rtol=1e-5, atol=1e-6)


def test_types_and_layout_of_the_input_are_kept():
    q = quantizer()
    z = torch.randn(2, 5, 8, 8)
    plain = q(z)
    with torch.autocast("cpu", torch.bfloat16):
        again = q(z.contiguous(memory_format=torch.channels_last))
    assert torch.equal(again.z_q, plain.z_q)
    assert torch.equal(again.loss, plain.loss)
    narrow, wide = q(z.bfloat16()), q(z.bfloat16().float())
    assert narrow.z_q.dtype == torch.bfloat16
    assert narrow.loss.dtype == torch.float32
    assert torch.equal(narrow.z_q, wide.z_q.bfloat16())
    half = copy.deepcopy(q).bfloat16()
    assert half(z).z_q.dtype == torch.float32
    assert half.decode(half.encode(z)).dtype == torch.float32


# gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_to", ["codebook", "features", "both"])
@pytest.mark.parametrize("train", [True, False])
def test_the_loss_has_the_gradient_of_the_written_out_loss(grad_to, train):
    q = quantizer((1, 2, 3, 5), wasserstein={"wasserstein_weight": 0.4, "grad_to": grad_to}).double().train(train)
    z = torch.randn(4, 5, 5, 5, dtype=torch.float64, requires_grad=True)
    parameters = [*q.codebook_parameters(), *q.phi.parameters()]
    got = torch.autograd.grad(q(z).loss, [z, *parameters])
    _, _, loss, residuals = var_loop(q, z)
    loss = loss + 0.4 * wasserstein_loss(rows_of(residuals), q.codebook, grad_to=grad_to)
    wanted = torch.autograd.grad(loss, [z, *parameters])
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_the_gradient_passes_as_the_inner_quantizer_says(gradient):
    torch.manual_seed(0)
    inner = VectorQuantizer(40, 5, gradient=gradient)
    q = MultiScaleQuantizer(inner, (1, 2, 4))
    z = torch.randn(2, 5, 4, 4, requires_grad=True)
    upstream = torch.randn(2, 5, 4, 4)
    z_q = q(z).z_q
    z_q.backward(upstream)
    rows = z.detach().clone().requires_grad_()
    inner.pass_gradient(rows.permute(0, 2, 3, 1), z_q.detach().permute(0, 2, 3, 1)).permute(0, 3, 1, 2).backward(
        upstream
    )
    assert z.grad is not None
    torch.testing.assert_close(z.grad, rows.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(z.grad, upstream) == (gradient == "straight_through")
    assert all(p.grad is None for p in q.parameters())


# properties ----------------------------------------------------------------------------------------------------------


def test_the_indices_of_an_image_depend_on_that_image_alone():
    q = quantizer().eval()
    z = torch.randn(7, 5, 8, 8)
    indices, order = q.encode(z), torch.randperm(7)
    alone = [q.encode(image) for image in z.split(1)]
    for t, maps in enumerate(indices):
        assert torch.equal(q.encode(z[order])[t], maps[order])
        assert torch.equal(torch.cat([a[t] for a in alone]), maps)
        assert torch.equal(q(z).indices[t], maps)
        assert torch.equal(q.encode(z.contiguous(memory_format=torch.channels_last))[t], maps)


def test_what_the_first_scale_gets_right_the_others_leave_alone():
    q = quantizer(num_phi=None)
    with torch.no_grad():
        q.codebook[7] = 0
    z = q.codebook[[3, 11]].detach()[:, :, None, None].expand(2, 5, 8, 8)
    z_q, indices, _ = q(z)
    assert indices[0].flatten().tolist() == [3, 11]
    assert all((i == 7).all() for i in indices[1:])
    torch.testing.assert_close(z_q, z, rtol=1e-6, atol=1e-7)


def test_usage_averages_the_counts_of_training_and_of_nothing_else():
    q = quantizer()
    z = torch.randn(3, 5, 8, 8)
    q.eval()(z)
    q.encode(z)
    assert not q.usage.any()
    indices = q.train()(z).indices
    counts = torch.stack([torch.bincount(i.flatten(), minlength=40) for i in indices]).float()
    torch.testing.assert_close(q.usage, 0.01 * counts, rtol=1e-6, atol=0)
    assert q.usage.shape == (6, 40)
    q(z)
    torch.testing.assert_close(q.usage, (0.0099 + 0.01) * counts, rtol=1e-6, atol=0)


def test_the_state_survives_safetensors_and_the_configuration_rebuilds_the_module():
    q = quantizer(wasserstein={"grad_to": "both"}, num_phi=2, matching="per_scale")
    z = torch.randn(2, 5, 8, 8)
    q(z)
    config = q.config
    inner = config.pop("inner")
    assert (config.pop("kind"), inner.pop("kind")) == ("multi_scale", "wasserstein")
    other = MultiScaleQuantizer(WassersteinQuantizer(**inner), **config)
    other.load_state_dict(load(save(q.state_dict())))
    assert sorted(q.state_dict()) == sorted(
        ["inner.weight", "phi.0.bias", "phi.0.weight", "phi.1.bias", "phi.1.weight", "usage"]
    )
    assert other.config == q.config
    assert torch.equal(other(z).loss, q(z).loss)
    assert torch.equal(other.usage, q.usage)
    assert q.codebook is q.inner.weight
    assert [p is q.inner.weight for p in q.codebook_parameters()] == [True]


@pytest.mark.parametrize("train", [True, False])
def test_compiles_into_one_graph(train):
    q = quantizer((1, 2, (3, 4)), wasserstein={}).train(train)
    compiled = copy.deepcopy(q)
    compiled.compile(fullgraph=True, backend="aot_eager")
    z = torch.randn(2, 5, 3, 4, requires_grad=True)
    wanted, got = q(z), compiled(z)
    assert torch.equal(got.z_q, wanted.z_q)
    assert all(torch.equal(a, b) for a, b in zip(got.indices, wanted.indices, strict=True))
    torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-6, atol=0)
    assert torch.equal(compiled.usage, q.usage)


def test_the_process_group_is_the_inner_quantizers():
    q = quantizer()
    assert q.group is None
    q.group = lambda: None  # type: ignore[assignment]  # stands for a group, which cannot be copied
    assert q.inner.group is q.group
    assert copy.deepcopy(q).group is None


# nasty ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
def test_no_images_give_no_loss(train):
    q = quantizer().train(train)
    z = torch.zeros(0, 5, 8, 8, requires_grad=True)
    z_q, indices, loss = q(z)
    loss.backward()
    assert z_q.shape == z.shape
    assert loss.item() == 0.0
    assert q.decode(indices).shape == z.shape
    assert [i.shape[0] for i in q.encode(z)] == [0] * 6


def test_a_broken_image_breaks_no_other():
    q = quantizer().eval()
    z = torch.randn(3, 5, 8, 8)
    clean = q(z)
    z[1, 0, 2, 3] = float("nan")
    broken = q(z)
    assert torch.equal(broken.z_q[[0, 2]], clean.z_q[[0, 2]])
    assert broken.loss.isnan()


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 5, 8), (2, 8, 8, 5), (5, 8, 8)])
def test_latents_of_another_size_are_refused(shape):
    q = quantizer()
    for call in (q, q.encode):
        with pytest.raises(ValueError, match=r"expected z \[B, 5, 8, 8\], got"):
            call(torch.zeros(shape))
    assert not q.usage.any()


def test_latents_of_another_dimension_or_type_are_refused():
    with pytest.raises(ValueError, match=r"expected z \[B, 5, h, w\]"):
        quantizer()(torch.zeros(2, 6, 8, 8))
    with pytest.raises(TypeError, match=r"floating point type, got torch\.int64"):
        quantizer()(torch.zeros(2, 5, 8, 8, dtype=torch.int64))


def test_bad_indices_are_refused():
    q = quantizer((1, 2))
    good = q.encode(torch.randn(3, 5, 2, 2))
    with pytest.raises(ValueError, match=r"expected indices of the sizes \[B, 1, 1\], \[B, 2, 2\], got \[\]"):
        q.decode([])
    with pytest.raises(ValueError, match=r"got \[\[3, 1, 1\], \[2, 2, 2\]\]"):
        q.decode([good[0], good[1][:2]])
    with pytest.raises(ValueError, match="from 0 to 39, got 40 to 40"):
        q.decode([torch.full_like(good[0], 40), good[1]])
    with pytest.raises(TypeError, match=r"int64 or int32, got torch\.float32"):
        q.decode([good[0].float(), good[1]])


def test_only_quantizers_of_single_vectors_fit_inside():
    with pytest.raises(
        TypeError, match=r"expected inner to quantise each vector on its own, .*got MultiScaleQuantizer"
    ):
        MultiScaleQuantizer(quantizer(), (1, 2))
    with pytest.raises(TypeError, match="got Linear"):
        MultiScaleQuantizer(torch.nn.Linear(2, 2), (1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "at least one scale, got none"),
        ({"scales": (0, 2)}, r"positive ints or \(h, w\) pairs, got 0"),
        ({"scales": (1, (2, 2, 2))}, r"positive ints or \(h, w\) pairs, got \(2, 2, 2\)"),
        ({"scales": (1.5, 2)}, r"positive ints or \(h, w\) pairs, got 1.5"),
        ({"scales": (1, 4, 2)}, "no scale larger than the last"),
        ({"scales": (1, 10**6)}, r"at most 1024 along a side, got \(1000000, 1000000\)"),
        ({"phi_kernel_size": 2}, "phi_kernel_size to be odd and positive, got 2"),
        ({"phi_ratio": 1.5}, "phi_ratio from 0 to 1, got 1.5"),
        ({"scales": range(1, 8), "num_phi": 6}, r"no phi without one of the 7 scales.*got 6"),
        ({"num_phi": -1}, "num_phi of at least 0 or None, got -1"),
        ({"matching": "each"}, "matching to be one of .*, got 'each'"),
        ({"scale_weights": (1, 2)}, r"scale_weights to be 6 finite numbers, .*got \[1, 2\]"),
        ({"scale_weights": (1, 2, 3, -1, 2, 3)}, r"none negative and not all 0, got \[1, 2, 3, -1, 2, 3\]"),
        ({"scale_weights": (1, 1, 1, 1, 0, 0)}, r"no phi without a weight .*got \[1, 1, 1, 1, 0, 0\]"),
        ({"scale_weights": (0,) * 6}, r"none negative and not all 0, got \[0, 0, 0, 0, 0, 0\]"),
        ({"scale_weights": (1, 1, 1, 1, 1, float("nan"))}, "none negative and not all 0, got .*nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"MultiScaleQuantizer: expected .*{message}"):
        quantizer(**options)
