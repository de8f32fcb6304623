"""Matching losses: values, gradients, options, properties, nasty and bad inputs."""

import math

import pytest
import torch

import cases
from vqdm_cuda import reference
from vqdm_cuda.losses import rate_distortion_gaussian, wasserstein_loss
from vqdm_cuda.ops.gaussian_w2 import gaussian_w2
from vqdm_cuda.ops.moments import moments

F64 = torch.float64


def sets(N: int = 60, K: int = 20, d: int = 4, dtype: torch.dtype = F64):
    z, e = cases.features(N, d, dtype, offset=1.0), cases.features(K, d, dtype, scale=0.3)
    return z.requires_grad_(), e.requires_grad_()


# --- wasserstein_loss: values and options ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("unbiased", [False, True])
def test_equals_reference(dtype, unbiased):
    z, e = sets(dtype=dtype)
    statistics = [*reference.moments(z.double(), unbiased=unbiased), *reference.moments(e.double(), unbiased=unbiased)]
    squared = reference.gaussian_w2(*statistics)
    # The moments of 60 rows are sums in the working type.
    relative = 16 * torch.finfo(cases.out_dtype(dtype)).eps
    loss = wasserstein_loss(z, e, squared=True, unbiased=unbiased)
    assert loss.dtype == cases.out_dtype(dtype)
    cases.assert_close(loss, squared, relative, scale=squared + 8)
    cases.assert_close(wasserstein_loss(z, e, unbiased=unbiased), (squared + 1e-10).sqrt(), relative, scale=4.0)


def test_published_formula():
    """The paper's code (arXiv 2506.15078, its own release): ridge 1e-8 inside the roots aside, the same number."""
    z, e = sets(d=6)
    S_z, S_c = z.T.cov(), e.T.cov()
    values, V = torch.linalg.eigh(S_z)
    root = V @ values.clamp_min(0).add(1e-8).sqrt().diag() @ V.T
    trace = torch.linalg.eigvalsh(root @ S_c @ root).clamp_min(0).add(1e-8).sqrt().sum()
    published = ((z.mean(0) - e.mean(0)).square().sum() + S_z.trace() + S_c.trace() - 2 * trace + 1e-10).sqrt()
    # Each of the six roots is off by at most 1e-8 / (2 root), roots being above 1e-2.
    cases.assert_close(wasserstein_loss(z, e, unbiased=True), published, 6 * 1e-6)


def test_cov_scale():
    z, e = sets()
    mean_z, cov_z = moments(z)
    expected = gaussian_w2(mean_z, 0.25 * cov_z, *moments(e))
    cases.assert_close(wasserstein_loss(z, e, squared=True, cov_scale=0.25), expected, cases.tolerance(F64, 4))


@pytest.mark.parametrize("normalize", ["features", "codebook"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_normalize(normalize, unbiased):
    z, e = sets()
    scale = (z if normalize == "features" else e).detach().std(0, correction=int(unbiased)).max()
    loss = wasserstein_loss(z, e, normalize=normalize, unbiased=unbiased)
    expected = wasserstein_loss(z / scale, e / scale, unbiased=unbiased)
    cases.assert_close(loss, expected, cases.tolerance(F64, 4))
    for got, wanted in zip(torch.autograd.grad(loss, (z, e)), torch.autograd.grad(expected, (z, e)), strict=True):
        cases.assert_close(got, wanted, 10 * cases.tolerance(F64, 4))


def test_constant_features_have_no_scale():
    e = sets()[1]
    z = torch.full((8, 4), 3.0, dtype=F64)
    assert torch.equal(wasserstein_loss(z, e, normalize="features"), wasserstein_loss(z, e))


def test_rate_distortion_target():
    z, e = sets()
    expected = gaussian_w2(*rate_distortion_gaussian(*moments(z), len(e)), *moments(e))
    loss = wasserstein_loss(z, e, squared=True, target="rate_distortion")
    cases.assert_close(loss, expected, cases.tolerance(F64, 4))
    grad_z, grad_e = torch.autograd.grad(loss, (z, e), allow_unused=True)
    assert grad_z is None
    assert grad_e.norm() > 0


def test_mixed_types():
    z, e = sets()
    assert wasserstein_loss(z.half(), e.bfloat16()).dtype == torch.float32
    assert wasserstein_loss(z.half(), e).dtype == F64


# --- wasserstein_loss: gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("options", [{}, {"unbiased": True, "cov_scale": 0.25}, {"tau": 1e-2}], ids=str)
def test_gradcheck(squared, options):
    z, e = sets(N=9, K=6, d=3)
    assert torch.autograd.gradcheck(lambda z, e: wasserstein_loss(z, e, squared=squared, **options), (z, e))


@pytest.mark.parametrize(
    ("grad_to", "reached"), [("codebook", (False, True)), ("features", (True, False)), ("both", (True, True))]
)
def test_grad_to(grad_to, reached):
    z, e = sets()
    whole = torch.autograd.grad(wasserstein_loss(z, e), (z, e))
    gradients = torch.autograd.grad(wasserstein_loss(z, e, grad_to=grad_to), (z, e), allow_unused=True)
    for gradient, expected, is_reached in zip(gradients, whole, reached, strict=True):
        assert (gradient is not None) == is_reached
        if gradient is not None:
            assert torch.equal(gradient, expected)


def test_data_form_of_the_gradient():
    """dW2^2/dX = (2/N) Xc (I - T12) + (2/N) 1 (m1 - m2)^T."""
    z, e = sets()
    (gradient,) = torch.autograd.grad(wasserstein_loss(z, e, squared=True), z)
    with torch.no_grad():
        mean1, S1 = moments(z)
        mean2, S2 = moments(e)
        root = reference.sqrtm(S1)
        inverse = root.inverse()
        T12 = inverse @ reference.sqrtm(root @ S2 @ root) @ inverse
        expected = 2 / len(z) * ((z - mean1) @ (torch.eye(4, dtype=F64) - T12) + (mean1 - mean2))
    cases.assert_close(gradient, expected, float(torch.linalg.cond(S1)) * cases.tolerance(F64, 4))


def test_descent_matches_the_codebook_to_the_features():
    z, e = sets(N=500, K=64)
    e = e.detach().requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(wasserstein_loss(z, e, squared=True, grad_to="codebook"), e)
        # The distance has curvature at most 2/K per row, so this step cannot overshoot.
        e = (e - len(e) / 2 * gradient).detach().requires_grad_()
    assert wasserstein_loss(z, e) < 1e-4


def test_autocast_changes_nothing():
    z, e = sets(dtype=torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = wasserstein_loss(z, e)
            results.append([loss, *torch.autograd.grad(loss, (z, e))])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("options", [{}, {"target": "rate_distortion", "normalize": "codebook"}], ids=str)
def test_compiles_to_one_graph(options):
    z, e = sets(dtype=torch.float32)
    cases.assert_compiles(lambda z, e: wasserstein_loss(z, e, **options), e.detach(), z)
    cases.assert_compiles(lambda z, e: wasserstein_loss(z, e, **options), z.detach(), e)


# --- wasserstein_loss: nasty ----------------------------------------------------------------------------------------


def degenerate():
    e = cases.features(20, 4, torch.float32)
    return {
        "coincident": (e, e.clone()),
        "constant features": (torch.ones(30, 4), e),
        "constant codebook": (e, torch.ones(7, 4)),
        "both constant": (torch.ones(30, 4), torch.ones(7, 4)),
        "one code": (e, torch.randn(1, 4)),
        "one feature": (torch.randn(1, 4), e),
        "fewer rows than dimensions": (cases.features(3, 4, torch.float32), cases.features(2, 4, torch.float32)),
        "dead dimension": (e * torch.tensor([1.0, 0, 1, 1]), e),
        "repeated rows": (e[:1].expand(30, 4), e[:2].repeat(4, 1)),
        "far away": (e + 1e4, e),
        "large": (1e15 * e, e),
        "small": (1e-15 * e, 1e-15 * e.flip(0, 1)),
    }


@pytest.mark.parametrize("name", degenerate())
@pytest.mark.parametrize("squared", [False, True])
def test_degenerate_sets_have_finite_values_and_gradients(name, squared):
    z, e = (x.clone().requires_grad_() for x in degenerate()[name])
    loss = wasserstein_loss(z, e, squared=squared)
    assert loss.isfinite()
    assert loss >= 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (z, e)))


def test_gradient_does_not_vanish_far_away():
    """An offset of 1e4 in float32: the mean term has its full gradient and the covariance term its digits."""
    e = cases.features(256, 4, torch.float32)
    z = (cases.features(256, 4, torch.float32) + 1e4).requires_grad_()
    (gradient,) = torch.autograd.grad(wasserstein_loss(z, e, squared=True), z)
    z64 = z.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(wasserstein_loss(z64, e.double(), squared=True), z64)
    cases.assert_close(gradient, expected, 16 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("where", ["z", "e"])
def test_nan_gives_nan(where):
    z, e = (x.detach() for x in sets())
    (z if where == "z" else e)[0, 0] = torch.nan
    assert wasserstein_loss(z, e).isnan()


def test_no_features():
    assert wasserstein_loss(torch.zeros(0, 3), torch.zeros(5, 3)).isnan()


# --- rate_distortion_gaussian ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "K"), [(8, 16384), (16, 16384), (32, 1024), (64, 16384), (1, 2)])
def test_isotropic_law(d, K):
    """Of N(0, I): variance 1 - K^(-2/d)."""
    mean, cov = rate_distortion_gaussian(torch.zeros(d).double(), torch.eye(d).double(), K)
    expected = (1 - K ** (-2 / d)) * torch.eye(d).double()
    cases.assert_close(cov, expected, cases.tolerance(F64, d), scale=1.0)
    assert mean.eq(0).all()


@pytest.mark.parametrize("K", [1, 2, 37, 1024, 2**40])
def test_spends_exactly_the_bits(K):
    values = torch.tensor([5.0, 1.0, 1.0, 0.3, 1e-3, 0.0], dtype=F64)
    _, cov = rate_distortion_gaussian(torch.zeros(6).double(), values.diag(), K)
    kept = cov.diagonal()
    theta = (values - kept)[kept > 0]  # the water level, the same in every active dimension
    bits = 0.5 * (values[kept > 0] / theta).log2().sum()
    assert bits == pytest.approx(math.log2(K), abs=1e-9)
    if len(theta):
        assert theta.max() - theta.min() <= 4 * torch.finfo(F64).eps * 5
        assert values[kept == 0].max() <= theta.max() * (1 + 1e-12)
    else:
        assert K == 1


def test_law_turns_with_the_covariance_and_batches():
    mean, cov = torch.randn(3, 5).double(), cases.covariance(5, 3)
    law_mean, law = rate_distortion_gaussian(mean, cov, 64)
    assert torch.equal(law_mean, mean)
    V = cases.rotation(5)
    turned = rate_distortion_gaussian(mean, V @ cov @ V.T, 64)[1]
    cases.assert_close(turned, V @ law @ V.T, 10 * cases.tolerance(F64, 5))
    assert torch.linalg.eigvalsh(cov - law).min() >= -cases.tolerance(F64, 5) * cov.norm()  # narrower than the features


def test_law_of_degenerate_covariances():
    zero = torch.zeros(3, dtype=F64)
    assert rate_distortion_gaussian(zero, torch.zeros(3, 3).double(), 16)[1].eq(0).all()
    batch = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan), torch.eye(3)]).double()
    law = rate_distortion_gaussian(zero, batch, 16)[1]
    assert law[1].isnan().all()
    assert law[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [(0, ValueError, "expected codebook_size >= 1, got 0"), (2.5, TypeError, "expected codebook_size to be an int")],
)
def test_law_of_a_bad_size(size, error, message):
    with pytest.raises(error, match=f"rate_distortion_gaussian: {message}"):
        rate_distortion_gaussian(torch.zeros(2), torch.eye(2), size)


# --- bad ------------------------------------------------------------------------------------------------------------

Z = torch.zeros
BAD = {
    "dimensions": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 2)),
        ValueError,
        "wasserstein_loss: expected z [N, d] and e [K, d] with equal d >= 1 and K >= 1, got [4, 3] and [5, 2]",
    ),
    "batch": (lambda: wasserstein_loss(Z(2, 4, 3), Z(5, 3)), ValueError, "wasserstein_loss: expected z [N, d] and e"),
    "no codes": (lambda: wasserstein_loss(Z(4, 3), Z(0, 3)), ValueError, "wasserstein_loss: expected z [N, d] and e"),
    "int": (lambda: wasserstein_loss(Z(4, 3).int(), Z(5, 3)), TypeError, "wasserstein_loss: expected z of dtype"),
    "device": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 3, device="meta")),
        ValueError,
        "wasserstein_loss: expected e on the device of z, cpu, got meta",
    ),
    "grad_to": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 3), grad_to="z"),
        ValueError,
        "wasserstein_loss: expected grad_to to be one of 'codebook', 'features', 'both', got 'z'",
    ),
    "target": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 3), target="codebook"),
        ValueError,
        "wasserstein_loss: expected target to be one of 'features', 'rate_distortion', got 'codebook'",
    ),
    "normalize": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 3), normalize="std"),
        ValueError,
        "wasserstein_loss: expected normalize to be one of None, 'features', 'codebook', got 'std'",
    ),
    "constant target for features": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 3), target="rate_distortion", grad_to="features"),
        ValueError,
        "wasserstein_loss: expected grad_to 'codebook' or 'both' with target 'rate_distortion'",
    ),
    "cov_scale": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 3), cov_scale=0.0),
        ValueError,
        "wasserstein_loss: expected cov_scale > 0, got 0.0",
    ),
    "one code": (
        lambda: wasserstein_loss(Z(4, 3), Z(1, 3), unbiased=True),
        ValueError,
        "wasserstein_loss: expected e [K, d] with K >= 2 where unbiased, got K = 1",
    ),
    "tau": (
        lambda: wasserstein_loss(Z(4, 3), Z(5, 3), tau=float("nan")),
        ValueError,
        "wasserstein_loss: expected tau >= 0, got nan",
    ),
}


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad(bad, fake):
    cases.assert_raises(bad, fake=fake)
