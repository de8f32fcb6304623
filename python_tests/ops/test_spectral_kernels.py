"""The CUDA kernels of moments, sqrtm and gaussian_w2, run on the host: all their ways, under several schedules.

The operators themselves, on every device, are the subject of test_moments.py, test_sqrtm.py and test_gaussian_w2.py.
"""

from collections.abc import Iterator

import mpmath
import pytest
import torch
from torch import Tensor

import cases
import simt

pytestmark = cases.NO_SIMT

U64 = torch.finfo(torch.float64).eps
WHOLE = 227 << 10  # bytes of shared memory that hold the matrices of these tests
SCHEDULES = ["forward", "reverse", "random"]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    simt.module()
    yield
    run_with("forward")


def run_with(schedule: str, shared_bytes: int = WHOLE) -> None:
    simt.module().set_schedule(schedule, 0)
    simt.module().set_max_shared_bytes(shared_bytes)


def blocks_of(d: int, columns: int) -> int:
    """As much shared memory as cuts a matrix into blocks of so many columns. More is needed by products."""
    return max(2 * columns * 2 * d * 8, 17 << 10)


def sqrtm(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.vqdm_simt.sqrtm(a)


def gaussian_w2(*arguments: Tensor, gradients: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Of mean1, cov1, mean2, cov2."""
    return torch.ops.vqdm_simt.gaussian_w2(*arguments, gradients)


def between(cov1: Tensor, cov2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = torch.zeros(cov1.shape[:-1], dtype=torch.float64)
    return gaussian_w2(mean, cov1, mean, cov2)


def clamped_root(a: Tensor) -> Tensor:
    values, V = torch.linalg.eigh(a)
    return (V * values.clamp_min(0).sqrt()[..., None, :]) @ V.mT


def assert_square_root(a: Tensor) -> None:
    """root, roots and vectors are those of a, as well as float64 can say: eigenvalues to d u of the largest."""
    d = a.shape[-1]
    root, roots, V = sqrtm(a)
    slack = 10 * d * U64
    largest = torch.linalg.matrix_norm(a, 2).max()
    assert torch.equal(root, root.mT)
    cases.assert_close(V.mT @ V, torch.eye(d, dtype=torch.float64).expand_as(V), slack, scale=1.0)
    cases.assert_close((V * roots[..., None, :] ** 2) @ V.mT, a, slack, scale=largest)
    cases.assert_close(root, (V * roots[..., None, :]) @ V.mT, slack, scale=largest.sqrt())
    # An eigenvalue that is off by d u of the largest has a root that is off by the root of that.
    cases.assert_close(roots.sort(-1)[0], torch.linalg.eigvalsh(a).clamp_min(0).sqrt(), slack**0.5, largest.sqrt())


# --- sqrtm and the eigenvalues ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 17, 33])
def test_square_root_of_whole_matrices(d, schedule):
    run_with(schedule)
    assert_square_root(cases.covariance(d, 2))


def test_square_root_of_the_largest_tests():
    run_with("random")
    assert_square_root(cases.covariance(64))
    assert_square_root(cases.hard_covariances(66)["rank one"])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("d", "columns"), [(33, 16), (40, 8), (48, 4)])
def test_square_root_of_matrices_in_blocks(d, columns, schedule):
    run_with(schedule, blocks_of(d, columns))
    assert_square_root(cases.covariance(d))


def test_square_root_of_wide_columns_in_blocks():
    run_with("random", blocks_of(130, 8))
    vector = torch.randn(130, 1, dtype=torch.float64)
    assert_square_root(vector @ vector.T)  # of rank one, so that few sweeps are enough


@pytest.mark.parametrize("name", cases.hard_covariances(3).keys())
def test_hard_square_roots(name):
    assert_hard_square_root(name, 18)


@pytest.mark.parametrize("name", ["half rank", "condition 1e12", "graded diagonal", "tiny", "slightly negative"])
def test_hard_square_roots_in_blocks(name):
    assert_hard_square_root(name, 34, blocks_of(34, 4))


def assert_hard_square_root(name: str, d: int, shared_bytes: int = WHOLE) -> None:
    run_with("random", shared_bytes)
    a = cases.hard_covariances(d)[name]
    if name == "slightly negative":
        root, roots, _ = sqrtm(a)
        assert (roots >= 0).all()
        cases.assert_close(root, clamped_root(a), 2e-7, scale=1.0)
    else:
        assert_square_root(a)
    root = sqrtm(a)[0]
    cases.assert_close(root @ root, a, 20 * d * U64 + 1e-12 * (name == "slightly negative"), scale=a.norm())


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e300])
def test_square_root_at_extreme_scales(scale):
    run_with("forward")
    a = cases.covariance(5)
    cases.assert_close(sqrtm(a * scale)[0] / scale**0.5, clamped_root(a), cases.tolerance(torch.float64, 5))


def test_indefinite_matrices_keep_their_positive_part():
    run_with("forward")
    a = cases.with_eigenvalues(torch.linspace(-1, 1, 9))
    cases.assert_close(sqrtm(a)[0], clamped_root(a), 1e-7, scale=1.0)  # one eigenvalue is zero
    assert torch.equal(sqrtm(-torch.eye(3))[0], torch.zeros(3, 3))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_square_root_of_any_type_and_strides(dtype):
    run_with("reverse")
    a = cases.covariance(7, 3, 2).to(dtype)
    a = a + torch.randn_like(a) / 100  # not symmetric
    strided = a.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    root, roots, _ = sqrtm(strided)
    assert root.dtype == cases.out_dtype(dtype)
    assert root.shape == (3, 2, 7, 7)
    assert roots.shape == (3, 2, 7)
    half = a.double() / 2
    cases.assert_close(root, clamped_root(half + half.mT), 10 * cases.tolerance(dtype, 7))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("blocks", [False, True])
def test_a_bad_matrix_leaves_the_others_alone(value, blocks):
    d = 34
    run_with("random", blocks_of(d, 16) if blocks else WHOLE)
    a = cases.hard_covariances(d)["rank one"].repeat(3, 1, 1)
    expected = sqrtm(a)
    a[1, 3, 2] = value
    root, roots, _ = sqrtm(a)
    assert root[1].isnan().all()
    assert roots[1].isnan().all()
    assert torch.equal(root[::2], expected[0][::2])
    assert torch.equal(roots[::2], expected[1][::2])


# --- gaussian_w2 ------------------------------------------------------------------------------------------------------


def gaussians(d: int, *batch: int) -> tuple[Tensor, ...]:
    mean1, mean2 = torch.randn(2, *batch, d, dtype=torch.float64)
    return mean1, cases.covariance(d, *batch), mean2, cases.covariance(d, *batch)


def by_torch(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same definitions with LAPACK's factorisations. The specification's own gradient is not defined everywhere."""
    d = cov1.shape[-1]
    cutoff = d * U64

    def factor(S: Tensor) -> tuple[Tensor, Tensor]:
        values, V = torch.linalg.eigh((S.double() + S.double().mT) / 2)
        return values.clamp_min(0).sqrt(), V

    (r1, V1), (r2, V2) = factor(cov1), factor(cov2)
    L1, L2 = V1 * r1[..., None, :], V2 * r2[..., None, :]
    P, sigma, Qt = torch.linalg.svd(L1.mT @ L2)
    W = (P * (sigma > cutoff * sigma[..., :1])[..., None, :]) @ Qt
    value = (mean1.double() - mean2.double()).square().sum(-1) + (L1 - L2 @ (P @ Qt).mT).square().sum((-2, -1))

    def gradient(moved: Tensor, V: Tensor, r: Tensor) -> Tensor:
        kept = r.square() > cutoff * r.square().amax(-1, keepdim=True)
        T = V.mT @ (moved * torch.where(kept, 1 / r, 0.0)[..., None, :])
        T = (T + T.mT) / torch.where(kept[..., None, :] & kept[..., :, None], 2.0, 1.0)
        return torch.eye(d, dtype=torch.float64) - V @ T @ V.mT

    return value, gradient(L2 @ W.mT, V1, r1), gradient(L1 @ W, V2, r2)


def assert_as_by_torch(arguments: tuple[Tensor, ...], *, deficient: bool = False) -> None:
    """With deficient rank, to the root of a rounding: see test_hard_distances."""
    d = arguments[1].shape[-1]
    w2, *gradients = gaussian_w2(*arguments)
    expected, *expected_gradients = by_torch(*arguments)
    slack = 10 * (d * U64) ** 0.5 if deficient else 0.0
    out = torch.float64 if any(x.dtype == torch.float64 for x in arguments) else torch.float32
    assert w2.dtype == out
    cases.assert_close(w2, expected, cases.tolerance(out, d) + slack)
    assert torch.equal(gaussian_w2(*arguments, gradients=False)[0], w2)
    for gradient, by_lapack in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, gradient.mT)
        cases.assert_close(gradient, by_lapack, 30 * cases.tolerance(torch.float64, d) + slack)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 17])
def test_distance_of_whole_matrices(d, schedule):
    run_with(schedule)
    assert_as_by_torch(gaussians(d, 2))


@pytest.mark.parametrize(("d", "shared_bytes"), [(33, WHOLE), (33, 17 << 10), (48, 17 << 10)])
def test_distance_of_more_tiles_and_of_blocks(d, shared_bytes):
    run_with("random", shared_bytes)
    assert_as_by_torch(gaussians(d))


@pytest.mark.parametrize("name1", cases.hard_covariances(3).keys())
def test_hard_distances(name1):
    """The value of each hard pair; its gradients are finite, symmetric, and exact along the covariance itself."""
    run_with("random")
    d = 6
    hard = cases.hard_covariances(d)
    pairs = [(hard[name1], hard[name2]) for name2 in hard]
    cov1, cov2 = (torch.stack(covs) for covs in zip(*pairs, strict=True))
    value, G1, G2 = between(cov1, cov2)
    expected, _, _ = by_torch(torch.zeros(d), cov1, torch.zeros(d), cov2)
    traces = [S.diagonal(dim1=-2, dim2=-1).sum(-1) for S in (cov1, cov2)]
    # An eigenvalue that is zero but for rounding enters by its root: what two factorisations make of it is that apart.
    slack = 100 * d * U64 * sum(traces) + 10 * (d * U64 * traces[0] * traces[1]).sqrt()
    assert (value >= 0).all()
    assert ((value - expected).abs() <= slack).all()
    for G, S in ((G1, cov1), (G2, cov2)):
        assert G.isfinite().all()
        assert torch.equal(G, G.mT)
        # tr(G S) = tr S - tr (S^1/2 other S^1/2)^1/2, half of value + tr S - tr other.
        trace = (G * S).sum((-2, -1))
        own = 0 if S is cov1 else 1
        assert ((2 * trace - (value + traces[own] - traces[1 - own])).abs() <= slack).all()


def test_deficient_rank_gradients():
    """Pseudo-inverses: what a covariance of rank two can and cannot say of the transport."""
    run_with("forward")
    basis = torch.randn(5, 2, dtype=torch.float64)
    assert_as_by_torch((torch.zeros(5), basis @ basis.T, torch.zeros(5), cases.covariance(5)), deficient=True)
    assert_as_by_torch((torch.zeros(5), cases.covariance(5), torch.zeros(5), basis @ basis.T), deficient=True)
    zero = torch.zeros(5, 5, dtype=torch.float64)
    _, G1, G2 = between(zero, cases.covariance(5))
    assert torch.equal(G1, torch.eye(5, dtype=torch.float64))
    assert torch.equal(G2, torch.eye(5, dtype=torch.float64))
    assert between(zero, zero)[0] == 0


def exact_bures(cov1: Tensor, cov2: Tensor) -> float:
    with mpmath.workdps(60):
        S1, S2 = (mpmath.matrix(S.tolist()) for S in (cov1, cov2))
        values, V = mpmath.eigsy(S1)
        root = V * mpmath.diag([mpmath.sqrt(v) for v in values]) * V.T
        product = root * S2 * root
        inner = mpmath.eigsy((product + product.T) / 2, eigvals_only=True)
        trace = sum(S1[i, i] + S2[i, i] for i in range(S1.rows))
        return float(trace - 2 * sum(mpmath.sqrt(v) for v in inner))


@pytest.mark.parametrize("name2", ["condition 1e4", "condition 1e8", "graded diagonal"])
def test_distance_at_condition_1e8_against_60_digits(name2):
    run_with("forward")
    hard = cases.hard_covariances(8)
    cov1, cov2 = hard["condition 1e8"], cases.hard_covariances(8)[name2]
    assert float(between(cov1, cov2)[0]) == pytest.approx(exact_bures(cov1, cov2), rel=1e-10)


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-7])
def test_near_coincidence(apart):
    """S2 = (1 + apart)^2 S1: B^2 = apart^2 tr S1, and dB^2/dS1 = -apart I. The textbook form cancels here."""
    run_with("forward")
    cov1 = cases.covariance(16)
    cov2 = (1 + apart) ** 2 * cov1
    value, G1, _ = between(cov1, cov2)
    rounding = 10 * 16 * U64 / apart
    cases.assert_close(value, apart**2 * cov1.trace(), rounding)
    cases.assert_close(G1, -apart * torch.eye(16, dtype=torch.float64), rounding * float(torch.linalg.cond(cov1)))


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e30, 1e100])
def test_distance_at_extreme_scales(scale):
    run_with("forward")
    cov1, cov2 = cases.covariance(6), cases.covariance(6)
    value, G1, G2 = between(cov1, cov2)
    scaled = between(scale * cov1, scale * cov2)
    cases.assert_close(scaled[0] / scale, value, cases.tolerance(torch.float64, 6))
    cases.assert_close(scaled[1], G1, 10 * cases.tolerance(torch.float64, 6))
    cases.assert_close(scaled[2], G2, 10 * cases.tolerance(torch.float64, 6))


@pytest.mark.parametrize("argument", range(4))
def test_a_bad_item_leaves_the_others_alone(argument):
    run_with("random")
    arguments = [torch.stack([x] * 4) for x in gaussians(5)]
    arguments[1][2] = cases.hard_covariances(5)["condition 1e12"]
    expected = gaussian_w2(*arguments)
    arguments[argument][1].view(-1)[2] = torch.nan
    arguments[argument][3].view(-1)[1] = torch.inf
    w2, *gradients = gaussian_w2(*arguments)
    assert w2[1::2].isnan().all()
    assert torch.equal(w2[::2], expected[0][::2])
    for gradient, before in zip(gradients, expected[1:], strict=True):
        assert torch.equal(gradient[::2], before[::2])
        assert gradient[1::2].isnan().all() == (argument in (1, 3))


def test_distance_of_mixed_types_strides_and_broadcast_items():
    run_with("reverse")
    mean1, cov1, mean2, cov2 = gaussians(4, 3, 2)
    arguments = (
        mean1.float().mT.contiguous().mT,
        cov1.bfloat16().permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        mean2[:1].half().expand(3, 2, 4),
        cov2[:, :1].float().expand(3, 2, 4, 4),
    )
    assert_as_by_torch(arguments)
    assert_as_by_torch((*arguments[:3], arguments[3].double()))
    w2, *gradients = gaussian_w2(*arguments, gradients=False)
    assert w2.shape == (3, 2)
    assert all(g.shape == (3, 2, 0, 0) for g in gradients)
    assert gaussian_w2(*gaussians(3, 0))[1].shape == (0, 3, 3)


def test_schedules_agree_to_the_bit():
    arguments = gaussians(9, 2)
    x = cases.features(200, 35, torch.float32)
    results = []
    for schedule in SCHEDULES:
        run_with(schedule)
        results.append([*gaussian_w2(*arguments), *sqrtm(arguments[1]), *torch.ops.vqdm_simt.moments(x, 1)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_above_256_dimensions_is_for_others():
    a = torch.eye(257)
    with pytest.raises(ValueError, match="expected d <= 256"):
        sqrtm(a)
    with pytest.raises(ValueError, match="expected d <= 256"):
        gaussian_w2(a[0], a, a[0], a)


# --- moments ----------------------------------------------------------------------------------------------------------


def assert_moments(x: Tensor) -> None:
    N, d = x.shape
    mean, scatter = torch.ops.vqdm_simt.moments(x, 1)
    rows = x.double()
    expected_mean = rows.mean(0) if N else torch.zeros(d, dtype=torch.float64)
    centred = rows - expected_mean
    assert torch.equal(scatter, scatter.T)
    cases.assert_close(mean, expected_mean, 10 * U64, scale=rows.abs().max() if N else 0.0)
    # Sums of 64 products in the type of x; what the offset adds in float64 is the rounding of the reference itself.
    slack = 64 * torch.finfo(x.dtype).eps
    sizes = centred.square().sum(0).sqrt()
    difference = (scatter - centred.T @ centred).abs()
    assert (
        difference <= slack * torch.outer(sizes, sizes) + N * (10 * U64 * (rows.abs().max() if N else 0)) ** 2
    ).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("N", [0, 1, 63, 64, 65, 1000])
def test_moments(N, offset, dtype):
    run_with("random")
    for d in (1, 33):
        assert_moments(cases.features(N, d, dtype, offset=offset))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_several_tiles(dtype, schedule):
    run_with(schedule)
    assert_moments(cases.features(150, 130, dtype, offset=100.0))


def test_moments_of_chunks_of_several_blocks():
    """A chunk has more than one block of 64 rows where there are more than 512 blocks."""
    run_with("forward")
    assert_moments(cases.features(64 * 512 + 70, 2, torch.float32, offset=1e4))


def test_moments_of_strided_rows():
    run_with("reverse")
    x = cases.features(130, 10, torch.float32)
    assert_moments(x.T.contiguous().T)
    assert_moments(x[::2, ::3])
    assert_moments(x[:1].expand(70, 10))
    assert_moments(x[:, :1].expand(130, 5))


def test_moments_of_distant_clusters():
    """Blocks whose means are far apart, and a first block that is not like the rest."""
    run_with("forward")
    x = cases.features(300, 6, torch.float64)
    x[:70] += 1e4
    x[200:] -= 1e3
    assert_moments(x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_moments_of_a_bad_row(value):
    run_with("forward")
    x = cases.features(200, 40, torch.float32)
    x[150, 3] = value
    mean, scatter = torch.ops.vqdm_simt.moments(x, 1)
    assert not mean[3].isfinite()
    assert scatter[3].isnan().all()
    rest = [j for j in range(40) if j != 3]
    assert mean[rest].isfinite().all()
    assert scatter[rest][:, rest].isfinite().all()
