"""WassersteinQuantizer: the vector quantizer plus the weighted matching loss, with the gradient where it was asked."""

from typing import Any

import pytest
import torch

from vqdm_cuda.losses import wasserstein_loss
from vqdm_cuda.quantizers import MultiScaleQuantizer, VectorQuantizer, WassersteinQuantizer


def pair(**options: Any) -> tuple[WassersteinQuantizer, VectorQuantizer]:
    """The quantizer and its plain counterpart with the same codes."""
    torch.manual_seed(0)
    q = WassersteinQuantizer(32, 4, **options)
    plain = VectorQuantizer(32, 4)
    plain.load_state_dict(q.state_dict())
    return q, plain


OPTIONS: list[dict[str, Any]] = [
    {},
    {"squared": True},
    {"target": "rate_distortion"},
    {"unbiased": True},
    {"normalize": "features"},
    {"normalize": "codebook"},
    {"cov_scale": 0.25},
    {"tau": 1e-2},
    {"grad_to": "both", "squared": True, "unbiased": True, "normalize": "features", "cov_scale": 0.5},
]


GAUSSIAN: dict[str, Any] = {"target": "gaussian", "target_std": 0.3, "grad_to": "features"}


# values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_gains_the_weighted_matching_term_with_its_options(options):
    q, plain = pair(wasserstein_weight=0.7, **options)
    z = torch.randn(200, 4) * 2 + 1
    quantized, terms = q(z, return_terms=True)
    base, base_terms = plain(z, return_terms=True)
    matching = 0.7 * wasserstein_loss(z, q.weight, **options).detach()
    assert list(terms) == ["commitment", "codebook", "wasserstein"]
    assert torch.equal(terms["wasserstein"], matching)
    assert torch.equal(terms["commitment"], base_terms["commitment"])
    assert torch.equal(quantized.z_q, base.z_q)
    assert torch.equal(quantized.indices, base.indices)
    torch.testing.assert_close(quantized.loss, base.loss + matching, rtol=1e-6, atol=0)


def test_no_two_options_mean_the_same():
    values = []
    for options in OPTIONS:
        q, _ = pair(**options)
        values.append(q(torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) * 2 + 1).loss.item())
    assert len({round(value, 6) for value in values}) == len(OPTIONS)


@pytest.mark.parametrize("options", [{}, {"squared": True, "tau": 1.0}, {"unbiased": True, "cov_scale": 0.5}], ids=str)
def test_a_fixed_gaussian_pulls_the_features_whatever_the_codes(options):
    q = pair(commitment_weight=0.0, codebook_weight=0.0, **GAUSSIAN, **options)[0].double()
    z = (torch.randn(300, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.1, 0.5]) + 1).requires_grad_()
    loss = q(z).loss
    cov = options.get("cov_scale", 1.0) * torch.cov(z.T, correction=int("unbiased" in options))
    roots = torch.linalg.eigvalsh(cov).sqrt()
    expected = z.mean(0).square().sum() + (roots - 0.3).square().sum()
    expected = 0.5 * (expected if "squared" in options else (expected + 1e-10).sqrt())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (wanted,) = torch.autograd.grad(expected, z)
    loss.backward()
    torch.testing.assert_close(z.grad, wanted, rtol=1e-9, atol=1e-14)
    assert q.weight.grad is None or not q.weight.grad.any()


# gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_to", ["codebook", "features", "both"])
def test_the_matching_gradient_goes_only_where_it_is_asked(grad_to):
    q, _ = pair(grad_to=grad_to, commitment_weight=0.0, codebook_weight=0.0)
    z = torch.randn(200, 4, requires_grad=True)
    q(z).loss.backward()
    z2, e2 = z.detach().clone().requires_grad_(), q.weight.detach().clone().requires_grad_()
    (0.5 * wasserstein_loss(z2, e2)).backward()
    assert z.grad is not None
    assert q.weight.grad is not None
    assert z2.grad is not None
    assert e2.grad is not None
    to_features = z2.grad if grad_to != "codebook" else torch.zeros_like(z2)
    to_codebook = e2.grad if grad_to != "features" else torch.zeros_like(e2)
    assert to_features.any() == (grad_to != "codebook")
    torch.testing.assert_close(z.grad, to_features, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(q.weight.grad, to_codebook, rtol=1e-6, atol=1e-9)


def test_codes_that_no_feature_selects_are_moved_by_matching_alone():
    q, plain = pair()
    z = torch.randn(3, 4)
    unused = torch.ones(32, dtype=torch.bool)
    unused[q.encode(z)] = False
    q(z).loss.backward()
    plain(z).loss.backward()
    assert plain.weight.grad is not None
    assert q.weight.grad is not None
    assert not plain.weight.grad[unused].any()
    assert (q.weight.grad[unused].norm(dim=1) > 0).all()


# properties ----------------------------------------------------------------------------------------------------------


def test_matching_brings_dead_codes_into_use():
    torch.manual_seed(0)
    z = torch.randn(2000, 4) + 3
    used = {}
    for weight in (0.0, 1.0):
        q = WassersteinQuantizer(64, 4, wasserstein_weight=weight, init_std=0.1)
        optimizer = torch.optim.Adam(q.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            q(z).loss.backward()
            optimizer.step()
        used[weight] = len(q.encode(z).unique())
    assert used[1.0] >= 3 * used[0.0]


@pytest.mark.parametrize(
    "options",
    [OPTIONS[-1], GAUSSIAN | {"queue_size": 9, "freeze_codebook": True, "codebook_weight": 0.0, "init_bound": 0.1}],
    ids=str,
)
def test_the_configuration_rebuilds_the_module(options):
    q = WassersteinQuantizer(32, 4, tau=1e-6, **options)
    config = q.config
    assert config.pop("kind") == "wasserstein"
    assert WassersteinQuantizer(**config).config == q.config


@pytest.mark.parametrize("options", [{"grad_to": "both"}, GAUSSIAN], ids=str)
def test_compiles_into_one_graph(options):
    q, _ = pair(**options)
    z = torch.randn(20, 4, requires_grad=True)
    plain, compiled = q(z), torch.compile(q, fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(compiled.loss, plain.loss, rtol=1e-6, atol=0)
    wanted, got = (torch.autograd.grad(x.loss, [z, q.weight]) for x in (plain, compiled))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


# nasty ---------------------------------------------------------------------------------------------------------------


def test_fewer_features_than_dimensions_have_a_finite_gradient():
    q, _ = pair(grad_to="both")
    z = torch.randn(2, 4, requires_grad=True)
    q(z).loss.backward()
    assert z.grad is not None
    assert q.weight.grad is not None
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(q.weight.grad).all()


def test_a_failing_loss_leaves_the_queue_as_it_was(monkeypatch):
    q = WassersteinQuantizer(8, 4, queue_size=16)
    q(torch.randn(5, 4))
    before = {name: value.clone() for name, value in q.state_dict().items()}

    def fails(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr("vqdm_cuda.quantizers.wasserstein.wasserstein_loss", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        q(torch.randn(5, 4))
    assert all(torch.equal(value, before[name]) for name, value in q.state_dict().items())


def test_a_single_code_has_no_unbiased_covariance():
    with pytest.raises(ValueError, match="WassersteinQuantizer: expected codebook_size >= 2 where unbiased, got 1"):
        WassersteinQuantizer(1, 4, unbiased=True)


# bad -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grad_to": "all"}, r"expected grad_to to be one of 'codebook', 'features', 'both', got 'all'"),
        ({"target": "normal"}, r"expected target to be one of .*, 'gaussian', got 'normal'"),
        ({"target": "gaussian", "grad_to": "features"}, r"expected target_std > 0 with target 'gaussian', got None"),
        ({**GAUSSIAN, "target_std": 0.0}, r"expected target_std > 0 with target 'gaussian', got 0.0"),
        ({"target_std": 0.1}, r"expected target_std only with target 'gaussian', got 0.1"),
        ({**GAUSSIAN, "grad_to": "codebook"}, r"expected grad_to 'features' with target 'gaussian', .*got 'codebook'"),
        ({**GAUSSIAN, "grad_to": "both"}, r"expected grad_to 'features' with target 'gaussian', .*got 'both'"),
        ({**GAUSSIAN, "normalize": "features"}, r"expected normalize None with target 'gaussian', .*got 'features'"),
        ({"freeze_codebook": True, "codebook_weight": 0.0}, r"expected grad_to 'features' with freeze_codebook"),
        ({"freeze_codebook": True}, r"expected codebook_weight 0 with freeze_codebook, .*got 1.0"),
        ({"tau": -1.0}, r"expected tau >= 0, got -1.0"),
        ({"queue_size": 1}, r"expected queue_size 0 \(the batch alone\) or at least 2, got 1"),
        ({"queue_size": -5}, r"expected queue_size 0 \(the batch alone\) or at least 2, got -5"),
        ({"normalize": "both"}, r"expected normalize to be one of .*, got 'both'"),
        ({"target": "rate_distortion", "grad_to": "features"}, r"expected grad_to 'codebook' or 'both' with target"),
        ({"wasserstein_weight": float("inf")}, r"expected wasserstein_weight to be finite and not negative, got inf"),
        ({"cov_scale": -1.0}, r"expected cov_scale > 0, got -1.0"),
        ({"commitment_weight": -1.0}, r"expected commitment_weight to be finite and not negative, got -1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"WassersteinQuantizer: {message}"):
        WassersteinQuantizer(32, 4, **options)


@pytest.mark.parametrize("size", [2.0, True, "all"])
def test_a_queue_size_of_another_type_is_refused(size):
    with pytest.raises(TypeError, match="WassersteinQuantizer: expected queue_size to be an int, got "):
        WassersteinQuantizer(32, 4, queue_size=size)


def test_too_few_vectors_for_a_covariance_match_nothing():
    """No rows, or one where covariances are unbiased, as at the first scale of a single image: 0, not NaN."""
    empty = WassersteinQuantizer(8, 4)
    assert empty(torch.randn(0, 4)).loss.item() == 0
    scales = MultiScaleQuantizer(WassersteinQuantizer(9, 4, unbiased=True), [1, 2, 3], matching="per_scale")
    quantized, terms = scales(torch.randn(1, 4, 3, 3), return_terms=True)
    assert quantized.loss.isfinite()
    assert terms["wasserstein"] > 0
    quantized.loss.backward()
    (codes,) = scales.codebook_parameters()
    assert codes.grad is not None
    assert codes.grad.isfinite().all()


def test_without_weight_it_is_a_vector_quantizer():
    torch.manual_seed(0)
    plain = VectorQuantizer(8, 4)
    matched = WassersteinQuantizer(8, 4, wasserstein_weight=0.0)
    matched.load_state_dict(plain.state_dict())
    z = torch.randn(20, 4)
    assert torch.equal(plain(z).loss, matched(z).loss)
