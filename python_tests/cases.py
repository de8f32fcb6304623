"""Inputs that the tests of all ops share, and the tolerances they are held to.

Ordinary sizes, matrices that are hard for a reason, and the one tolerance, derived from dtype and dimension.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import simt

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NO_SIMT = pytest.mark.skipif(not simt.AVAILABLE, reason="needs a build with VQDM_SIMT=ON")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
# Of operators with kernels of their own, through the fixture `device`: "simt" is the CUDA kernels on the host, with CPU
# tensors (see simt.py).
KERNEL_DEVICES = ["cpu", pytest.param("simt", marks=NO_SIMT), pytest.param("cuda", marks=NO_GPU)]
# Of sqrtm and gaussian_w2, with CPU tensors, through the fixture `route`: own kernels for every d, LAPACK for every d,
# the CUDA kernels on the host.
ROUTES = ["own", "library", pytest.param("simt", marks=NO_SIMT)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# (N, K, d): empty, least, odd, not multiples of any vector width, and wide.
SIZES = [(0, 3, 4), (1, 1, 1), (7, 5, 3), (129, 33, 17), (300, 128, 64)]
DIMENSIONS = [1, 2, 3, 8, 17, 33, 64]

Bad = tuple[Callable[[], object], type[Exception], str]  # a call, its error, and how its message starts


def out_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an op returns for inputs of this type."""
    return torch.promote_types(dtype, torch.float32)


def tolerance(dtype: torch.dtype, d: int) -> float:
    """Relative to the largest number that enters a result: one rounding to the output type, and float64 arithmetic of
    d-term sums and d x d factorisations (whose constant, about ten, LAPACK's users' guide leaves at "modest")."""
    return torch.finfo(out_dtype(dtype)).eps + 10 * d * torch.finfo(torch.float64).eps


def assert_close(actual: Tensor, expected: Tensor, relative: float, scale: float | Tensor | None = None) -> None:
    """|actual - expected| <= relative * scale, where scale is the largest expected magnitude unless given."""
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).abs()
    if scale is None:
        scale = expected.double().abs().max() if expected.numel() else 0.0
    assert (difference <= relative * scale).all(), f"off by {difference.max():.3g}, allowed {relative * scale:.3g}"


def features(N: int, d: int, dtype: torch.dtype = torch.float64, *, offset: float = 0.0, scale: float = 1.0) -> Tensor:
    """[N, d] Gaussian rows, dimensions correlated and of unequal size."""
    mixing = torch.randn(d, d, dtype=torch.float64) / d**0.5 + torch.diag(torch.linspace(0.5, 1.5, d).double())
    return (scale * (torch.randn(N, d, dtype=torch.float64) @ mixing) + offset).to(dtype)


def rotation(d: int) -> Tensor:  # [d, d] float64
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q


def with_eigenvalues(values: Tensor) -> Tensor:  # [d] -> [d, d], turned at random
    V = rotation(len(values))
    a = (V * values.double()) @ V.T
    return (a + a.T) / 2


def covariance(d: int, *batch: int) -> Tensor:  # [*batch, d, d] float64, of full rank, condition about 30
    x = torch.randn(*batch, 3 * d + 2, d, dtype=torch.float64)
    return x.mT @ x / (3 * d + 2)


def hard_covariances(d: int) -> dict[str, Tensor]:
    """Symmetric positive semi-definite [d, d], each hard for the reason that names it; d >= 3."""
    spread = torch.linspace(0, 1, d, dtype=torch.float64)
    half_rank = torch.cat([torch.ones(d // 2), torch.zeros(d - d // 2)])
    pairs = (torch.arange(d) // 2 + 1).double()
    correlated = torch.diag(torch.linspace(3, 1, d, dtype=torch.float64))  # first and last, the others between
    correlated[0, 0] = 1
    correlated[0, -1] = correlated[-1, 0] = 0.9
    blocks = torch.block_diag(covariance(d // 2), 5 * covariance(d - d // 2))
    order = torch.randperm(d)
    one_dead = covariance(d)
    one_dead[1] = one_dead[:, 1] = 0
    return {
        "zero": torch.zeros(d, d, dtype=torch.float64),
        "identity": torch.eye(d, dtype=torch.float64),
        "repeated pairs": with_eigenvalues(pairs),
        "half rank": with_eigenvalues(half_rank),
        "rank one": with_eigenvalues((torch.arange(d) == 0).double()),
        "one dead dimension": one_dead,
        "one correlated pair": correlated,
        "shuffled blocks": blocks[order][:, order],
        "condition 1e4": with_eigenvalues(10 ** (-4 * spread)),
        "condition 1e8": with_eigenvalues(10 ** (-8 * spread)),
        "condition 1e12": with_eigenvalues(10 ** (-12 * spread)),
        "graded diagonal": torch.diag(10 ** (-12 * spread)),
        "tiny": 1e-30 * covariance(d),
        "huge": 1e30 * covariance(d),
        "slightly negative": with_eigenvalues(spread - 1e-13),
    }


def assert_raises(bad: Bad, *, fake: bool) -> None:
    """The documented error, with real tensors or under FakeTensorMode."""
    call, error, message = bad
    if fake:
        with FakeTensorMode(), pytest.raises(error) as raised:
            call()
    else:
        with pytest.raises(error) as raised:
            call()
    assert str(raised.value).startswith(message), str(raised.value)


def assert_compiles(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> None:
    """One graph under torch.compile, static and with symbolic sizes, with the values and gradients of eager mode."""
    for dynamic in (None, True):
        _assert_compiles(function, inputs, dynamic)


def _assert_compiles(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: tuple[Tensor, ...], dynamic: bool | None
) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for run in (function, compiled):
        output = run(*inputs)
        outputs = output if isinstance(output, tuple) else (output,)
        leaves = [x for x in inputs if x.requires_grad]
        smooth = [y for y in outputs if y.requires_grad]
        total = sum((y.double().square().sum() for y in smooth), torch.zeros((), dtype=torch.float64))
        gradients = torch.autograd.grad(total, leaves) if leaves else ()
        results.append([y.detach() for y in (*outputs, *gradients)])
    torch.compiler.reset()
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=0, atol=0, equal_nan=True)


def assert_graph_replays(call: Callable[[], tuple[Tensor, ...]], *inputs: Tensor) -> None:
    """Captured once in a CUDA graph, the call gives eager mode's bits for data that its inputs hold later."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(2):
        for x in inputs:
            if x.is_floating_point():
                x.copy_(torch.randn(x.shape, device="cuda"))
            else:
                x.copy_(x.flip(0))
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, captured, call()))


@contextlib.contextmanager
def no_waiting_for_gpu() -> Iterator[None]:
    """An error where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
