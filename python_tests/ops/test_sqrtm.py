"""sqrtm: values, gradients, registration, properties, nasty and bad inputs."""

import pytest
import torch

import cases
from vqdm_cuda import reference
from vqdm_cuda.ops.sqrtm import sqrtm

pytestmark = [pytest.mark.usefixtures("route"), pytest.mark.parametrize("route", cases.ROUTES, indirect=True)]

HARD = list(cases.hard_covariances(3))

# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("d", cases.DIMENSIONS)
def test_equals_reference(d, dtype, device, route):
    if route == "simt" and d > 40:
        pytest.skip("seconds each in the interpreter: test_spectral_kernels.py has one")
    a = cases.covariance(d, 3).to(dtype)
    root = sqrtm(a.to(device)).cpu()
    assert root.dtype == cases.out_dtype(dtype)
    cases.assert_close(root, reference.sqrtm(a), cases.tolerance(dtype, d))


def test_only_the_symmetric_part_counts():
    a, skew = cases.covariance(4), torch.randn(4, 4).double()
    skew = skew - skew.T
    cases.assert_close(sqrtm(a + skew), sqrtm(a), cases.tolerance(torch.float64, 4))


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 5)])
def test_gradcheck(shape):
    *batch, d = shape
    assert torch.autograd.gradcheck(sqrtm, (cases.covariance(d, *batch).requires_grad_(),))


@pytest.mark.parametrize("name", ["identity", "repeated pairs", "condition 1e4"])
def test_gradcheck_where_eigenvalue_differences_would_vanish(name):
    a = cases.hard_covariances(6)[name].requires_grad_()
    assert torch.autograd.gradcheck(sqrtm, (a,), eps=1e-8, atol=1e-4)


def test_gradient_solves_the_lyapunov_equation():
    a = cases.hard_covariances(8)["condition 1e8"].requires_grad_()
    upstream = torch.randn(8, 8).double()
    root = sqrtm(a)
    (G,) = torch.autograd.grad(root, a, upstream)
    symmetric = (upstream + upstream.T) / 2
    scale = 2 * root.detach().norm() * G.norm()  # of the terms that cancel to the right-hand side
    cases.assert_close(root @ G + G @ root, symmetric, cases.tolerance(torch.float64, 8), scale=scale)


@pytest.mark.parametrize("name", HARD)
def test_gradients_are_finite(name):
    a = cases.hard_covariances(7)[name].requires_grad_()
    (gradient,) = torch.autograd.grad(sqrtm(a).sum(), a)
    assert gradient.isfinite().all()
    if name == "zero":
        assert gradient.eq(0).all()


def test_a_pair_of_zeros_gets_no_gradient():
    a = torch.diag(torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(sqrtm(a), a, torch.ones(3, 3).double())
    expected = torch.tensor([[0.25, 0.5, 0.5], [0.5, 0, 0], [0.5, 0, 0]], dtype=torch.float64)
    assert torch.equal(gradient, expected)


def test_double_backward_is_refused():
    a = cases.covariance(3).requires_grad_()
    (gradient,) = torch.autograd.grad(sqrtm(a).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="sqrtm: expected at most one backward pass"):
        gradient.sum().backward()


# --- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (2, 3, 4, 4), (0, 3, 3)])
def test_opcheck(shape, route):
    op = torch.ops.vqdm.sqrtm_by_library if route == "library" else torch.ops.vqdm.sqrtm
    torch.library.opcheck(op, (cases.covariance(shape[-1], *shape[:-2]).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_to_one_graph(dtype):
    cases.assert_compiles(sqrtm, cases.covariance(5, 2).to(dtype).requires_grad_())


def test_autocast_changes_nothing():
    a = cases.covariance(5).float()
    expected = sqrtm(a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sqrtm(a), expected)


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HARD)
def test_squares_to_its_argument(name):
    a = cases.hard_covariances(17)[name]
    root = sqrtm(a)
    assert torch.equal(root, root.T)
    slack = 2e-13 if name == "slightly negative" else cases.tolerance(torch.float64, 17)
    cases.assert_close(root @ root, a, slack)
    assert torch.linalg.eigvalsh(root).min() >= -cases.tolerance(torch.float64, 17) * root.norm()


def test_commutes_with_rotation():
    a, V = cases.covariance(6), cases.rotation(6)
    cases.assert_close(sqrtm(V @ a @ V.T), V @ sqrtm(a) @ V.T, cases.tolerance(torch.float64, 6))


# --- nasty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_bad_item_leaves_the_others_alone(value):
    a = cases.covariance(4, 3)
    expected = sqrtm(a)
    a[1, 0, 2] = value
    a.requires_grad_()
    root = sqrtm(a)
    (gradient,) = torch.autograd.grad(root.sum(), a)
    assert root[1].isnan().all()
    assert gradient[1].isnan().all()
    assert torch.equal(root[[0, 2]], expected[[0, 2]])
    assert gradient[[0, 2]].isfinite().all()


def test_empty_batch():
    assert sqrtm(torch.zeros(0, 3, 3)).shape == (0, 3, 3)


def test_views():
    a = cases.covariance(4, 3)
    for view in (a.mT, a[::2], a[:1].expand(5, 4, 4), a[:, ::2, ::2]):
        cases.assert_close(sqrtm(view), sqrtm(view.contiguous()), cases.tolerance(torch.float64, 4))


# --- bad ------------------------------------------------------------------------------------------------------------

BAD = {
    "vector": (lambda: sqrtm(torch.zeros(3)), ValueError, "sqrtm: expected a [..., d, d] with d >= 1, got [3]"),
    "not square": (
        lambda: sqrtm(torch.zeros(2, 3)),
        ValueError,
        "sqrtm: expected a [..., d, d] with d >= 1, got [2, 3]",
    ),
    "empty": (lambda: sqrtm(torch.zeros(0, 0)), ValueError, "sqrtm: expected a [..., d, d] with d >= 1, got [0, 0]"),
    "complex": (lambda: sqrtm(torch.zeros(2, 2) * 1j), TypeError, "sqrtm: expected a of dtype float64, float32"),
    "number": (lambda: sqrtm(2.0), TypeError, "sqrtm: expected a to be a tensor, got float"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad(bad, fake):
    cases.assert_raises(bad, fake=fake)
