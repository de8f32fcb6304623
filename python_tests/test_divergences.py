"""gaussian_kl and gaussian_bhattacharyya: values, gradients, singular covariances, bad inputs."""

import pytest
import torch

import cases
from vqdm_cuda.divergences import gaussian_bhattacharyya, gaussian_kl

F64 = torch.float64
DIVERGENCES = [gaussian_kl, gaussian_bhattacharyya]


def gaussians(d: int = 4, *batch: int):
    return [x for _ in range(2) for x in (torch.randn(*batch, d, dtype=F64), cases.covariance(d, *batch))]


def test_kl_equals_torch():
    mean1, cov1, mean2, cov2 = gaussians()
    normal = torch.distributions.MultivariateNormal
    expected = torch.distributions.kl_divergence(normal(mean1, cov1), normal(mean2, cov2))
    cases.assert_close(gaussian_kl(mean1, cov1, mean2, cov2), expected, 100 * cases.tolerance(F64, 4))


def test_bhattacharyya_equals_its_formula():
    mean1, cov1, mean2, cov2 = gaussians()
    S, D = (cov1 + cov2) / 2, mean1 - mean2
    log_ratio = torch.logdet(S) - (torch.logdet(cov1) + torch.logdet(cov2)) / 2
    expected = D @ S.inverse() @ D / 8 + log_ratio / 2
    cases.assert_close(gaussian_bhattacharyya(mean1, cov1, mean2, cov2), expected, 100 * cases.tolerance(F64, 4))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_divergence_gradcheck(divergence, batch):
    leaves = [x.requires_grad_() for x in gaussians(3, *batch)]
    assert torch.autograd.gradcheck(divergence, leaves)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_of_equals_is_zero(divergence):
    mean, cov = gaussians()[:2]
    mean.requires_grad_()
    cov.requires_grad_()
    value = divergence(mean, cov, mean.detach(), cov.detach())
    assert value.abs() <= cases.tolerance(F64, 4)
    for gradient in torch.autograd.grad(value, (mean, cov)):
        assert gradient.abs().max() <= 100 * cases.tolerance(F64, 4)


def test_kl_is_not_negative_near_coincidence():
    for apart in (1e-3, 1e-6, 1e-9, 1e-12):
        mean, cov = gaussians(8)[:2]
        assert gaussian_kl(mean, cov, mean, (1 + apart) * cov) >= 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("argument", ["cov1", "cov2"])
@pytest.mark.parametrize("name", ["zero", "half rank", "one dead dimension"])
def test_singular_covariance_is_refused(divergence, dtype, argument, name):
    mean1, cov1, mean2, cov2 = gaussians()
    singular = cases.hard_covariances(4)[name]
    covs = (singular, cov2) if argument == "cov1" else (cov1, singular)
    inputs = [x.to(dtype) for x in (mean1, covs[0], mean2, covs[1])]
    with pytest.raises(ValueError, match=f"{divergence.__name__}: expected {argument} of full rank, got eigenvalues"):
        divergence(*inputs)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("argument", ["cov1", "cov2"])
def test_one_singular_covariance_of_a_batch_is_refused(divergence, argument):
    mean1, cov1, mean2, cov2 = gaussians(4, 2, 3)
    (cov1 if argument == "cov1" else cov2)[1, 2] = cases.hard_covariances(4)["rank one"]
    with pytest.raises(ValueError, match=f"{divergence.__name__}: expected {argument} of full rank, got eigenvalues"):
        divergence(mean1, cov1, mean2, cov2)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_full_rank_is_judged_at_the_precision_that_was_given(divergence):
    """A condition of 1e4 is within float32 and beyond bfloat16, whose rounding makes the small eigenvalues up."""
    mean1, _, mean2, cov2 = gaussians()
    hard = torch.diag(torch.tensor([1.0, 1.0, 1e-2, 1e-4], dtype=F64))
    assert divergence(mean1.float(), hard.float(), mean2.float(), cov2.float()).isfinite()
    narrow = [x.bfloat16() for x in (mean1, hard, mean2, cov2)]
    with pytest.raises(ValueError, match=f"{divergence.__name__}: expected cov1 of full rank, got eigenvalues"):
        divergence(*narrow)
    well = [x.bfloat16() for x in (mean1, torch.eye(4, dtype=F64), mean2, 2 * torch.eye(4, dtype=F64))]
    expected = divergence(*(x.double() for x in well))
    assert divergence(*well).dtype == torch.float32
    torch.testing.assert_close(divergence(*well).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_nan_stays_in_its_item(divergence):
    mean1, cov1, mean2, cov2 = gaussians(4, 3)
    cov1[1, 0, 0] = torch.nan
    mean2[2, 0] = torch.nan
    assert divergence(mean1, cov1, mean2, cov2).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_bad_shapes(divergence):
    with pytest.raises(ValueError, match=rf"{divergence.__name__}: expected means \[..., d\] and covariances"):
        divergence(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(2))
