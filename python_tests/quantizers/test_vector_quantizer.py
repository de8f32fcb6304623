"""VectorQuantizer against the formulas written out in float64."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import simt
from cases import DEVICES, NO_SIMT
from vqdm_cuda.quantizers import MultiScaleQuantizer, VectorQuantizer
from vqdm_cuda.quantizers.gradient import pass_gradient
from vqdm_cuda.quantizers.per_vector import PerVectorQuantizer

# Name, shape of z for d = 4, shape of the indices.
LAYOUTS = [
    ("image", (2, 4, 3, 5), (2, 3, 5)),
    ("list", (7, 4), (7,)),
    ("batch of lists", (2, 6, 4), (2, 6)),
]


def quantizer(**options: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(11, 4, init_std=1.0, **options)


def naive_indices(rows: Tensor, e: Tensor) -> Tensor:
    """[N, d], [K, d] -> [N]: every distance, in float64."""
    return (rows.double()[:, None] - e.double()[None]).square().sum(-1).argmin(1)


def rows_of(z: Tensor) -> Tensor:
    return z.movedim(1, -1).reshape(-1, z.shape[1]) if z.dim() == 4 else z.reshape(-1, z.shape[-1])


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "index_shape"), [layout[1:] for layout in LAYOUTS], ids=[x[0] for x in LAYOUTS])
def test_every_layout_gives_the_nearest_codes(shape, index_shape, device):
    q = quantizer(commitment_weight=0.3, codebook_weight=0.7).to(device)
    z = torch.randn(shape, device=device)
    z_q, indices, loss = q(z)
    expected = naive_indices(rows_of(z), q.weight)
    assert indices.dtype == torch.int64
    assert indices.shape == index_shape
    assert torch.equal(indices.reshape(-1), expected)
    assert z_q.shape == z.shape
    assert torch.equal(rows_of(z_q), q.weight[expected])
    mean_square = (rows_of(z).double() - q.weight.double()[expected]).square().mean()
    torch.testing.assert_close(loss.double(), mean_square, rtol=1e-6, atol=0)
    assert torch.equal(q.encode(z), indices)
    assert torch.equal(q.decode(indices), z_q)


def test_the_layouts_agree():
    q = quantizer()
    z = torch.randn(2, 4, 3, 5)
    first, last = q(z), q(z.permute(0, 2, 3, 1).reshape(2, 15, 4))
    assert torch.equal(first.indices.view(2, 15), last.indices)
    assert torch.equal(first.loss, last.loss)
    assert torch.equal(first.z_q.permute(0, 2, 3, 1).reshape(2, 15, 4), last.z_q)


def test_any_strides_give_the_same_result():
    q = quantizer()
    z = torch.randn(2, 4, 3, 5)
    plain = q(z)
    for view in (
        z.contiguous(memory_format=torch.channels_last),
        z.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        result = q(view)
        assert torch.equal(result.z_q, plain.z_q)
        assert torch.equal(result.indices, plain.indices)


def test_terms_are_weighted_and_add_up_to_the_loss():
    q = quantizer(commitment_weight=0.25, codebook_weight=2.0)
    z = torch.randn(9, 4)
    quantized, terms = q(z, return_terms=True)
    assert list(terms) == ["commitment", "codebook"]
    assert all(term.dtype == torch.float32 and not term.requires_grad and term.dim() == 0 for term in terms.values())
    assert torch.equal(
        8 * terms["commitment"], terms["codebook"]
    )  # one distance under two weights, a power of two apart
    assert torch.equal(sum(terms.values(), torch.zeros(())), quantized.loss.detach())
    assert torch.equal(q(z).loss, quantized.loss)


def test_narrow_types_are_quantised_in_float32_whatever_the_autocast():
    q = quantizer()
    z = torch.randn(50, 4).bfloat16()
    wide = q(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        narrow, again = q(z), q(z.float())
    assert narrow.z_q.dtype == torch.bfloat16
    assert narrow.loss.dtype == torch.float32
    assert torch.equal(narrow.indices, wide.indices)
    assert torch.equal(narrow.loss, wide.loss)
    assert torch.equal(narrow.z_q, wide.z_q.bfloat16())
    assert torch.equal(again.z_q, wide.z_q)
    assert q(z.half()).z_q.dtype == torch.float16


def test_a_half_precision_module_still_computes_in_float32():
    q = quantizer().bfloat16()
    z = torch.randn(50, 4)
    quantized = q(z)
    assert quantized.z_q.dtype == torch.float32
    assert torch.equal(quantized.z_q, q.weight.float()[naive_indices(z, q.weight)])
    assert q.decode(quantized.indices).dtype == torch.float32


def test_float64_is_quantised_in_float64():
    q = quantizer().double()
    z = torch.randn(50, 4, dtype=torch.float64)
    quantized = q(z)
    expected = (z - q.weight[naive_indices(z, q.weight)]).square().mean() * 1.25
    assert quantized.loss.dtype == torch.float64
    torch.testing.assert_close(quantized.loss, expected, rtol=1e-14, atol=0)
    assert q.decode(quantized.indices).dtype == torch.float64


# gradients -----------------------------------------------------------------------------------------------------------


def test_the_gradient_passes_straight_through():
    q = quantizer()
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    upstream = torch.randn(2, 4, 3, 5)
    q(z).z_q.backward(upstream)
    assert z.grad is not None
    assert torch.equal(z.grad, upstream)
    assert q.weight.grad is None


def test_the_loss_has_the_gradient_of_the_written_out_loss():
    q = quantizer(commitment_weight=0.3, codebook_weight=0.7).double()
    z = torch.randn(40, 4, dtype=torch.float64, requires_grad=True)
    q(z).loss.backward()

    z2, e2 = z.detach().clone().requires_grad_(), q.weight.detach().clone().requires_grad_()
    one_hot = torch.nn.functional.one_hot(naive_indices(z2, e2), 11).double()
    z_q = one_hot @ e2
    (0.3 * (z2 - z_q.detach()).square().mean() + 0.7 * (z_q - z2.detach()).square().mean()).backward()
    torch.testing.assert_close(z.grad, z2.grad, rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(q.weight.grad, e2.grad, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(
    ("z_dtype", "e_dtype"),
    [("float32", "float32"), ("float64", "float32"), ("float32", "float64"), ("float32", "bfloat16")],
)
def test_one_step_equals_the_steps_written_out(z_dtype, e_dtype):
    """The fused pass against assign, lookup, fit_terms and pass_gradient, each of which autograd differentiates."""
    q = quantizer(commitment_weight=0.3, codebook_weight=0.7).to(getattr(torch, e_dtype))
    z = torch.randn(300, 4, dtype=getattr(torch, z_dtype), requires_grad=True)
    upstream = torch.randn_like(z)
    results = []
    for quantize in (q.quantize, super(VectorQuantizer, q).quantize):
        z_q, indices, terms = quantize(z)
        loss = 2 * terms["commitment"] + 3 * terms["codebook"]
        gradients = torch.autograd.grad([z_q, loss], [z, q.weight], [upstream, torch.ones_like(loss)])
        results.append((z_q, indices, loss, *gradients))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    for fused, plain in zip(*(result[2:] for result in results), strict=True):
        assert fused.dtype == plain.dtype
        eps = max(torch.finfo(fused.dtype).eps, torch.finfo(z.dtype).eps)
        torch.testing.assert_close(fused, plain, rtol=8 * eps, atol=eps)


def test_features_and_codes_far_from_zero_keep_the_gradient_of_their_differences():
    q = quantizer()
    with torch.no_grad():
        q.weight.add_(1e4)
    z = (torch.randn(500, 4) + 1e4).requires_grad_()
    quantized = q(z)
    quantized.loss.backward()
    z2, e2 = z.detach().double(), q.weight.detach().double()
    error = z2 - e2[quantized.indices]
    expected = torch.zeros_like(e2).index_add(0, quantized.indices, error) * (-2 / error.numel())
    torch.testing.assert_close(quantized.loss.double(), 1.25 * error.square().mean(), rtol=1e-6, atol=0)
    assert q.weight.grad is not None
    torch.testing.assert_close(q.weight.grad.double(), expected, rtol=1e-6, atol=1e-9)


def test_only_what_is_asked_gets_a_gradient():
    q, z = quantizer(), torch.randn(20, 4)
    q(z).loss.backward()
    both = q.weight.grad
    q.requires_grad_(False)
    z.requires_grad_()
    q(z).loss.backward()
    features = z.grad
    q.requires_grad_(True).zero_grad()
    z.grad = None
    q(z).loss.backward()
    assert both is not None
    assert features is not None
    torch.testing.assert_close((z.grad, q.weight.grad), (features, both), rtol=0, atol=0)
    assert not q.requires_grad_(False)(z.detach()).loss.requires_grad


class _StepByStep(VectorQuantizer):
    """The same quantizer by assign, lookup and fit_terms, which autograd differentiates on its own."""

    quantize = PerVectorQuantizer.quantize


def test_second_derivatives_batched_gradients_and_function_transforms():
    torch.manual_seed(0)
    z, weight = torch.randn(20, 4, dtype=torch.float64), torch.randn(11, 4)
    batch = torch.randn(3, dtype=torch.float64)
    results = []
    for kind in (_StepByStep, VectorQuantizer):
        q = kind(11, 4).double()
        q.load_state_dict({"weight": weight})
        features = z.clone().requires_grad_()
        batched = torch.autograd.grad(q(features).loss, (features, q.weight), batch, is_grads_batched=True)
        to_both = torch.autograd.grad(q(features).loss, (features, q.weight), create_graph=True)
        penalty = torch.cat(to_both).square().sum()
        second = torch.autograd.grad(penalty, (features, q.weight), allow_unused=True)
        results.append([torch.func.grad(lambda z, q=q: q(z).loss)(z), *batched, *(t for t in second if t is not None)])
    for got, want in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, want)


def test_a_returned_tensor_may_be_changed_in_place():
    q, z = quantizer(), torch.randn(20, 4, requires_grad=True)
    wanted = torch.autograd.grad(q(z).loss, z)[0]
    quantized = q(z)
    quantized.z_q.mul_(2)
    assert torch.equal(torch.autograd.grad(quantized.loss, z)[0], wanted)


def test_the_gradient_of_the_codebook_has_the_same_bits_for_any_number_of_threads():
    q = quantizer()
    z = torch.randn(20000, 4)
    threads, gradients = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            gradients.append(torch.autograd.grad(q(z).loss, q.weight)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_rotation_keeps_the_value_and_rotates_the_gradient():
    q = quantizer(gradient="rotation").double()
    z = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(30, 4, dtype=torch.float64)
    z_q = q(z).z_q
    z_q.backward(upstream)
    codes = q.weight[naive_indices(z, q.weight)].detach()
    assert torch.equal(z_q, codes)
    assert z.grad is not None
    for i in range(30):
        a, b = z[i].detach() / z[i].detach().norm(), codes[i] / codes[i].norm()
        w = (a + b) / (a + b).norm()
        R = torch.eye(4, dtype=torch.float64) - 2 * torch.outer(w, w) + 2 * torch.outer(b, a)
        torch.testing.assert_close(R @ a, b, rtol=0, atol=1e-14)
        expected = codes[i].norm() / z[i].detach().norm() * R.T @ upstream[i]
        torch.testing.assert_close(z.grad[i], expected, rtol=1e-12, atol=1e-13)


def test_rotation_has_the_gradient_of_vector_quantize_pytorch():
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    codes, upstream = torch.randn(30, 4), torch.randn(30, 4)
    ours = torch.randn(30, 4).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    pass_gradient(ours, codes, "rotation").backward(upstream)
    peer.rotate_to(theirs, codes).backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("z", "z_q"),
    [([1.0, 0.0], [-2.0, 0.0]), ([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0]), ([0.0, 0.0], [0.0, 0.0])],
    ids=["opposite", "no feature", "no code", "neither"],
)
def test_rotation_is_finite_where_no_rotation_is_defined(z, z_q):
    feature = torch.tensor([z], requires_grad=True)
    out = pass_gradient(feature, torch.tensor([z_q]), "rotation")
    out.sum().backward()
    assert torch.equal(out, torch.tensor([z_q]))
    assert feature.grad is not None
    assert torch.isfinite(feature.grad).all()


# properties ----------------------------------------------------------------------------------------------------------


def test_an_index_depends_on_its_vector_alone():
    q = quantizer().eval()
    z = torch.randn(97, 4)
    indices = q.encode(z)
    order = torch.randperm(97)
    assert torch.equal(q.encode(z[order]), indices[order])
    assert torch.equal(torch.cat([q.encode(part) for part in z.split(13)]), indices)
    assert torch.equal(q(z).indices, indices)


def test_the_state_survives_safetensors_and_the_configuration_rebuilds_the_module():
    q = quantizer(gradient="rotation", commitment_weight=0.5)
    config = q.config
    assert config.pop("kind") == "vector"
    other = VectorQuantizer(**config)
    other.load_state_dict(load(save(q.state_dict())))
    z = torch.randn(20, 4)
    assert list(q.state_dict()) == ["weight"]
    assert torch.equal(other(z).loss, q(z).loss)
    assert other.config == q.config
    assert [p is q.weight for p in q.codebook_parameters()] == [True]
    assert q.codebook is q.weight


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_compiles_into_one_graph(gradient):
    q = quantizer(gradient=gradient)
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    plain, compiled = q(z), torch.compile(q, fullgraph=True, backend="aot_eager")(z)
    assert torch.equal(plain.z_q, compiled.z_q)
    assert torch.equal(plain.indices, compiled.indices)
    wanted, got = (torch.autograd.grad(x.loss + x.z_q.square().sum(), [z, q.weight]) for x in (plain, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def test_the_initial_codes_have_the_asked_deviation():
    torch.manual_seed(0)
    assert VectorQuantizer(5000, 16).weight.std().item() == pytest.approx(0.25, rel=0.02)
    assert VectorQuantizer(5000, 16, init_std=0.01).weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_the_initial_codes_fill_the_asked_bounds_evenly():
    torch.manual_seed(0)
    q = VectorQuantizer(5000, 16, init_bound=1 / 5000)
    assert q.weight.abs().max().item() == pytest.approx(1 / 5000, rel=1e-3)
    assert q.weight.std().item() == pytest.approx(1 / 5000 / 3**0.5, rel=0.01)
    again = VectorQuantizer(**{k: v for k, v in q.config.items() if k != "kind"})
    assert again.config == q.config
    assert again.init_std is None


def test_frozen_codes_are_out_of_reach():
    """A buffer: no optimizer, no requires_grad_ and no gradient finds it, and it is saved under the same name."""
    q, trained = quantizer(freeze_codebook=True, codebook_weight=0.0), quantizer()
    assert list(q.parameters()) == q.codebook_parameters() == q.parameter_groups(lr=1.0, codebook_lr=1.0) == []
    trained.load_state_dict(q.state_dict())
    z = torch.randn(20, 4, requires_grad=True)
    (z_q, indices, loss), terms = q.requires_grad_(True)(z, return_terms=True)
    assert torch.equal(indices, trained.encode(z))
    (loss + z_q.sum()).backward()
    (wanted,) = torch.autograd.grad(0.25 * (z - z_q.detach()).square().mean() + z.sum(), z)
    torch.testing.assert_close(z.grad, wanted, rtol=1e-6, atol=1e-7)
    assert q.weight.grad is None
    assert not q.weight.requires_grad
    assert terms["codebook"] == 0
    assert copy.deepcopy(q).double().weight.dtype == torch.float64


def test_the_codebook_has_a_parameter_group_of_its_own():
    plain = quantizer()
    groups = plain.parameter_groups(lr=0.1, codebook_lr=0.5)
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(1, 0.5)]
    scales = MultiScaleQuantizer(plain, (1, 2, 4), num_phi=2)
    rest, codebook = scales.parameter_groups(lr=0.1, codebook_lr=0.5)
    assert (rest["lr"], codebook["lr"]) == (0.1, 0.5)
    assert [id(p) for p in codebook["params"]] == [id(plain.weight)]
    assert {id(p) for p in rest["params"]} == {id(p) for p in scales.phi.parameters()}
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0}, rest, codebook])
    before = plain.weight.detach().clone()
    plain(torch.randn(20, 4)).loss.backward()
    optimizer.step()
    assert plain.weight.grad is not None
    torch.testing.assert_close(plain.weight.detach(), before - 0.5 * plain.weight.grad, rtol=1e-6, atol=1e-7)


def test_a_copy_has_no_process_group():
    q = quantizer()
    q.group = lambda: None  # type: ignore[assignment]  # stands for a group, which cannot be copied either
    assert copy.deepcopy(q).group is None
    assert q.group is not None


# nasty ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 4, 3, 5), (2, 4, 0, 5)])
def test_no_vectors_give_no_loss(shape):
    q = quantizer()
    z = torch.zeros(shape, requires_grad=True)
    z_q, indices, loss = q(z)
    loss.backward()
    assert z_q.shape == shape
    assert loss.item() == 0.0
    assert q.decode(indices).shape == shape


def test_one_code_and_one_dimension():
    q = VectorQuantizer(1, 1)
    z = torch.randn(5, 1)
    assert torch.equal(q(z).indices, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(q(z).z_q, q.weight.expand(5, 1))


def test_a_broken_vector_breaks_neither_its_neighbours_nor_stays_unseen():
    q = quantizer()
    z = torch.randn(3, 4)
    clean = q(z)
    z[1, 2] = float("nan")
    broken = q(z)
    assert broken.indices[1] == 0
    assert torch.equal(broken.indices[[0, 2]], clean.indices[[0, 2]])
    assert torch.equal(broken.z_q[[0, 2]], clean.z_q[[0, 2]])
    assert broken.loss.isnan()
    z.requires_grad_()
    q(z).loss.backward()
    assert z.grad is not None
    assert z.grad[[0, 2]].isfinite().all()
    assert z.grad[1].isnan().any()


# bad -----------------------------------------------------------------------------------------------------------------

BOTH_LAYOUTS = r"expected z \[B, 4, h, w\] \(channels first\) or \[..., 4\] with 2 or 3 dimensions \(channels last\)"


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (4,), (2, 5), (2, 4, 5), (1, 2, 4, 5, 4)])
def test_another_layout_is_refused_with_both_named(shape):
    for call in (quantizer(), quantizer().encode):
        with pytest.raises(ValueError, match=BOTH_LAYOUTS):
            call(torch.zeros(shape))


def test_features_must_be_floating_point():
    with pytest.raises(TypeError, match=r"VectorQuantizer: expected z of a floating point type, got torch\.int64"):
        quantizer()(torch.zeros(3, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0, 11]), ValueError, r"from 0 to 10, got 0 to 11"),
        (torch.tensor([-1, 3]), ValueError, r"from 0 to 10, got -1 to 3"),
        (torch.tensor([0.0]), TypeError, r"int64 or int32, got torch\.float32"),
        (torch.tensor(3), ValueError, r"\[B, h, w\], \[B, n\] or \[N\], got \[\]"),
        (torch.zeros(1, 1, 1, 1, dtype=torch.int64), ValueError, r"got \[1, 1, 1, 1\]"),
    ],
)
def test_bad_indices_are_refused(indices, error, message):
    with pytest.raises(error, match=f"VectorQuantizer.decode: expected indices .*{message}"):
        quantizer().decode(indices)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"codebook_size": 0}, ValueError, "codebook_size of at least 1, got 0"),
        ({"codebook_size": 2.0}, TypeError, "codebook_size to be an int, got float"),
        ({"code_dim": True}, TypeError, "code_dim to be an int, got bool"),
        ({"commitment_weight": -1.0}, ValueError, "commitment_weight to be finite and not negative, got -1.0"),
        ({"codebook_weight": float("nan")}, ValueError, "codebook_weight to be finite and not negative, got nan"),
        ({"gradient": "none"}, ValueError, "gradient to be one of .*, got 'none'"),
        ({"init_std": 0.0}, ValueError, "init_std to be finite and positive, got 0.0"),
        ({"init_bound": -1.0}, ValueError, "init_bound to be finite and positive, got -1.0"),
        ({"init_bound": 1.0, "init_std": 2.0}, ValueError, "init_std or init_bound, got both, 2.0 and 1.0"),
        ({"freeze_codebook": True}, ValueError, "codebook_weight 0 with freeze_codebook, since .*, got 1.0"),
    ],
)
def test_bad_options_are_refused(arguments, error, message):
    with pytest.raises(error, match=f"VectorQuantizer: expected {message}"):
        VectorQuantizer(**({"codebook_size": 8, "code_dim": 4} | arguments))


@NO_SIMT
@pytest.mark.parametrize("path", ["tensor_core", "portable"])
def test_a_training_step_by_cuda_kernels_has_the_bits_of_the_cpu(path: str, monkeypatch) -> None:
    monkeypatch.setenv("VQDM_CUDA_KERNEL", path)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(200, 24)
    z = torch.randn(2, 24, 6, 7)

    def step() -> list[Tensor]:
        features = z.clone().requires_grad_()
        quantizer.zero_grad()
        quantized = quantizer(features)
        (quantized.z_q.square().mean() + quantized.loss).backward()
        assert features.grad is not None
        assert quantizer.weight.grad is not None
        return [quantized.z_q, quantized.indices, quantized.loss, features.grad, quantizer.weight.grad.clone()]

    expected = step()
    with simt.kernels("random", 3):
        got = step()
    assert all(map(torch.equal, got, expected))
