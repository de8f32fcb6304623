"""gaussian_w2: values, gradients, registration, properties, nasty and bad inputs."""

import pytest
import torch
from torch import Tensor

import cases
from vqdm_cuda import reference
from vqdm_cuda.ops.gaussian_w2 import gaussian_w2
from vqdm_cuda.ops.moments import moments

pytestmark = [pytest.mark.usefixtures("route"), pytest.mark.parametrize("route", cases.ROUTES, indirect=True)]

HARD = list(cases.hard_covariances(3))
U64 = torch.finfo(torch.float64).eps


def pair(d: int, *batch: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """mean1, cov1, mean2, cov2"""
    return [
        make.to(dtype)
        for _ in range(2)
        for make in (torch.randn(*batch, d, dtype=torch.float64), cases.covariance(d, *batch))
    ]


def trusting(gaussians: list[Tensor]) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in gaussians]


def between_covariances(cov1: Tensor, cov2: Tensor) -> Tensor:
    zero = cov1.new_zeros(cov1.shape[-1])
    return gaussian_w2(zero, cov1, zero, cov2)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("d", cases.DIMENSIONS)
def test_equals_reference(d, dtype, device, route):
    if route == "simt" and d > 40:
        pytest.skip("seconds each in the interpreter: test_spectral_kernels.py has one")
    gaussians = pair(d, 3, dtype=dtype)
    value = gaussian_w2(*(x.to(device) for x in gaussians)).cpu()
    assert value.dtype == cases.out_dtype(dtype)
    # The textbook form cancels: its error is relative to the traces that it subtracts.
    scale = gaussians[1].double().diagonal(dim1=-2, dim2=-1).sum() + gaussians[3].double().sum().abs() + d
    cases.assert_close(value, reference.gaussian_w2(*gaussians), cases.tolerance(dtype, d), scale=scale)


@pytest.mark.parametrize("d", [1, 4, 33])
def test_commuting_covariances(d):
    V, values1, values2 = cases.rotation(d), torch.rand(d).double(), torch.rand(d).double()
    expected = (values1.sqrt() - values2.sqrt()).square().sum()
    value = between_covariances((V * values1) @ V.T, (V * values2) @ V.T)
    cases.assert_close(value, expected, cases.tolerance(torch.float64, d), scale=float(d))


def test_leading_dimensions_broadcast():
    _, cov1, mean2, _ = pair(3)
    means = torch.randn(4, 1, 3).double()
    covs = cases.covariance(3, 5)
    value = gaussian_w2(means, cov1, mean2, covs)
    assert value.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            one = gaussian_w2(means[i, 0], cov1, mean2, covs[j])
            cases.assert_close(value[i, j], one, cases.tolerance(torch.float64, 3))


def test_mixed_types_give_the_wider():
    mean1, cov1, mean2, cov2 = pair(3)
    assert gaussian_w2(mean1.half(), cov1.float(), mean2.bfloat16(), cov2).dtype == torch.float64


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "batch"), [(1, ()), (4, ()), (3, (2,))])
def test_gradcheck(d, batch):
    assert torch.autograd.gradcheck(gaussian_w2, trusting(pair(d, *batch)))


def test_gradcheck_from_data():
    z, e = cases.features(12, 3, offset=1.0).requires_grad_(), cases.features(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, e: gaussian_w2(*moments(z), *moments(e, unbiased=True)), (z, e))


def test_gradients_equal_those_of_the_reference():
    gaussians = pair(8)
    results = []
    for function in (gaussian_w2, reference.gaussian_w2):
        leaves = trusting(gaussians)
        results.append(torch.autograd.grad(function(*leaves), leaves))
    for ours, textbook in zip(*results, strict=True):
        symmetric = (textbook + textbook.mT) / 2 if textbook.dim() == 2 else textbook
        # Autograd through eigh divides by differences of eigenvalues, here above 1e-3.
        cases.assert_close(ours, symmetric, 1e4 * cases.tolerance(torch.float64, 8))


@pytest.mark.parametrize("name", ["identity", "repeated pairs", "condition 1e4"])
def test_gradient_is_that_of_the_transport_map(name):
    """T S1 T = S2 with T = I - dB^2/dS1, and the other gradient is I - T^-1."""
    S1, S2 = trusting([cases.hard_covariances(6)[name], cases.covariance(6)])
    G1, G2 = torch.autograd.grad(between_covariances(S1, S2), (S1, S2))
    identity = torch.eye(6, dtype=torch.float64)
    T12, T21 = identity - G1, identity - G2
    condition = 1e4 * cases.tolerance(torch.float64, 6)
    cases.assert_close(T12 @ S1 @ T12, S2, condition, scale=S2.norm())
    cases.assert_close(T12 @ T21, identity, condition, scale=1.0)
    assert torch.equal(G1, G1.T)


@pytest.mark.parametrize("name1", HARD)
@pytest.mark.parametrize("name2", HARD)
def test_hard_pairs_have_finite_values_and_gradients(name1, name2):
    mean = torch.zeros(5, dtype=torch.float64)
    hard1, hard2 = cases.hard_covariances(5)[name1], cases.hard_covariances(5)[name2]
    leaves = trusting([mean, hard1, mean, hard2])
    value = gaussian_w2(*leaves)
    assert value >= 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, leaves))
    swapped = gaussian_w2(mean, hard2, mean, hard1)
    cases.assert_close(value, swapped, cases.tolerance(torch.float64, 5), scale=hard1.trace() + hard2.trace())


@pytest.mark.parametrize("name", HARD)
def test_coincidence(name):
    S1 = cases.hard_covariances(9)[name].requires_grad_()
    value = between_covariances(S1, S1.detach())
    (gradient,) = torch.autograd.grad(value, S1)
    assert 0 <= value <= cases.tolerance(torch.float64, 9) * S1.trace()
    # Zero on the range of S1; what leaves the range can only lengthen the distance, and has slope 1.
    along = gradient @ S1
    cases.assert_close(along, torch.zeros_like(along), 1e6 * U64, scale=S1.detach().norm())
    assert gradient.abs().max() <= 1 + 1e6 * U64


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-7])
def test_near_coincidence(apart):
    """S2 = (1 + apart)^2 S1: B^2 = apart^2 tr S1, and dB^2/dS1 = -apart I. The textbook form cancels here."""
    S1 = cases.covariance(16).requires_grad_()
    value = between_covariances(S1, (1 + apart) ** 2 * S1.detach())
    (gradient,) = torch.autograd.grad(value, S1)
    condition = torch.linalg.cond(S1.detach())
    lost = float(cases.tolerance(torch.float64, 16) * condition / apart)
    cases.assert_close(value, apart**2 * S1.detach().trace(), lost)
    cases.assert_close(gradient, -apart * torch.eye(16, dtype=torch.float64), lost)


def test_deficient_rank_gradient_is_exact_for_data():
    """Rows in a plane, which is then turned: the rank stays 2, where the distance is smooth in the rows."""
    x = torch.cat([cases.features(9, 2), torch.zeros(9, 1, dtype=torch.float64)], 1).requires_grad_()
    target = cases.covariance(3)
    spin = torch.randn(3, 3).double()
    spin = spin - spin.T

    def turned(angle: float) -> Tensor:
        return between_covariances(moments(x.detach() @ torch.matrix_exp(angle * spin))[1], target)

    (gradient,) = torch.autograd.grad(between_covariances(moments(x)[1], target), x)
    step = 1e-2
    expected = (8 * (turned(step) - turned(-step)) - (turned(2 * step) - turned(-2 * step))) / (12 * step)
    # Rounding gives the turned covariance a third eigenvalue of size u, and the distance a term of its root.
    cases.assert_close((gradient * (x.detach() @ spin)).sum(), expected, U64**0.5 / step)


def test_mean_gradient():
    leaves = trusting(pair(4))
    g1, _, g2, _ = torch.autograd.grad(gaussian_w2(*leaves), leaves)
    expected = 2 * (leaves[0] - leaves[2]).detach()
    assert torch.equal(g1, expected)
    assert torch.equal(g2, -expected)


def test_double_backward_is_refused():
    leaves = trusting(pair(3))
    gradients = torch.autograd.grad(gaussian_w2(*leaves), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="gaussian_w2: expected at most one backward pass"):
        gradients[1].sum().backward()


# --- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "batch"), [(1, ()), (5, ()), (4, (2, 3)), (3, (0,))])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(gradients, d, batch, route):
    op = torch.ops.vqdm.gaussian_w2_by_library if route == "library" else torch.ops.vqdm.gaussian_w2
    gaussians = pair(d, *batch)
    torch.library.opcheck(op, (*(trusting(gaussians) if gradients else gaussians), gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_to_one_graph(dtype):
    cases.assert_compiles(gaussian_w2, *trusting(pair(5, 2, dtype=dtype)))


def test_autocast_changes_nothing():
    gaussians = pair(5, dtype=torch.float32)
    expected = gaussian_w2(*gaussians)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gaussian_w2(*gaussians), expected)


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 7, 20])
def test_scaling_and_rotation(d):
    mean1, cov1, mean2, cov2 = pair(d)
    value = gaussian_w2(mean1, cov1, mean2, cov2)
    slack = cases.tolerance(torch.float64, d)
    scale = cov1.trace() + cov2.trace() + mean1.norm() ** 2 + mean2.norm() ** 2
    scaled = gaussian_w2(3 * mean1, 9 * cov1, 3 * mean2, 9 * cov2)
    cases.assert_close(scaled / 9, value, slack, scale=scale)
    V = cases.rotation(d)
    turned = gaussian_w2(V @ mean1, V @ cov1 @ V.T, V @ mean2, V @ cov2 @ V.T)
    cases.assert_close(turned, value, slack, scale=scale)


def test_triangle_inequality():
    for _ in range(20):
        a, b, c = (cases.covariance(4) for _ in range(3))
        assert between_covariances(a, c).sqrt() <= between_covariances(a, b).sqrt() + between_covariances(b, c).sqrt()


# --- nasty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("argument", [0, 1, 2, 3])
def test_one_bad_item_leaves_the_others_alone(argument, value):
    gaussians = pair(4, 3)
    expected = gaussian_w2(*gaussians)
    gaussians[argument][1].view(-1)[2] = value
    leaves = trusting(gaussians)
    w2 = gaussian_w2(*leaves)
    gradients = torch.autograd.grad(w2.sum(), leaves)
    assert not w2[1].isfinite()
    assert torch.equal(w2[[0, 2]], expected[[0, 2]])
    assert all(g[[0, 2]].isfinite().all() for g in gradients)
    assert not gradients[argument][1].isfinite().all()


@pytest.mark.parametrize("d", [5, 64])
def test_condition_1e12_against_diagonal_truth(d):
    values1 = 10 ** torch.linspace(-12, 0, d, dtype=torch.float64)
    values2 = values1.flip(0)
    expected = (values1.sqrt() - values2.sqrt()).square().sum()
    cases.assert_close(between_covariances(values1.diag(), values2.diag()), expected, cases.tolerance(torch.float64, d))


def test_orthogonal_ranges():
    S1, S2 = (torch.diag(torch.tensor(v, dtype=torch.float64)) for v in ([1.0, 2, 0, 0], [0, 0, 3.0, 4]))
    assert between_covariances(S1, S2) == pytest.approx(10, abs=1e-14)


def test_empty_batch():
    assert gaussian_w2(*pair(3, 0)).shape == (0,)


# --- bad ------------------------------------------------------------------------------------------------------------

Z = torch.zeros
SHAPES = "gaussian_w2: expected means [..., d] and covariances [..., d, d] of one d >= 1, got "
BAD = {
    "d of means": (lambda: gaussian_w2(Z(3), Z(3, 3), Z(4), Z(3, 3)), ValueError, SHAPES + "[3], [3, 3], [4], [3, 3]"),
    "d of covs": (lambda: gaussian_w2(Z(3), Z(3, 3), Z(3), Z(4, 4)), ValueError, SHAPES + "[3], [3, 3], [3], [4, 4]"),
    "not square": (lambda: gaussian_w2(Z(3), Z(2, 3), Z(3), Z(3, 3)), ValueError, SHAPES),
    "variances": (lambda: gaussian_w2(Z(3), Z(3), Z(3), Z(3)), ValueError, SHAPES),
    "no dimension": (lambda: gaussian_w2(Z(0), Z(0, 0), Z(0), Z(0, 0)), ValueError, SHAPES),
    "number": (lambda: gaussian_w2(Z(()), Z(1, 1), Z(1), Z(1, 1)), ValueError, SHAPES),
    "batch": (
        lambda: gaussian_w2(Z(2, 3), Z(3, 3), Z(3, 3), Z(3, 3)),
        ValueError,
        "gaussian_w2: expected leading dimensions that broadcast, got [2, 3], [3, 3], [3, 3], [3, 3]",
    ),
    "int": (
        lambda: gaussian_w2(Z(3).int(), Z(3, 3), Z(3), Z(3, 3)),
        TypeError,
        "gaussian_w2: expected mean1 of dtype float64, float32, bfloat16 or float16, got torch.int32",
    ),
    "device": (
        lambda: gaussian_w2(Z(3), Z(3, 3), Z(3), Z(3, 3, device="meta")),
        ValueError,
        "gaussian_w2: expected cov2 on the device of mean1, cpu, got meta",
    ),
}


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad(bad, fake):
    cases.assert_raises(bad, fake=fake)
