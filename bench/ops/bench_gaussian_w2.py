"""gaussian_w2 of given covariances, and wasserstein_loss of features and codes, beside their peers.

    python -m bench.ops.bench_gaussian_w2 [--seconds 4] [--device cpu|cuda] [--out bench/results]

`gaussian_w2`: the squared distance alone, without a gradient, of float64 covariances of condition about 30; batches of
1 and 10. "CPU round trip" (on a GPU) moves the covariances to LAPACK and the value back.

`wasserstein_loss`: forward and backward pass of the loss of float32 features [8192, d] and codes [4096, d]; both
require a gradient. "two eigh and autograd" is the same loss as published, in float32: covariances by products, the
first root and the eigenvalues of the product by torch.linalg.eigh, autograd through both. "POT" is
ot.gaussian.bures_wasserstein_distance on the same moments, with torch's autograd.

Errors: `value_error` of the squared loss, relative to the reference in float64 on these inputs; `near_error` and
`near_gradient_error`, the same and that of the gradient in the codes, where the codes are the features with their
covariance changed by a thousandth. NaN where a gradient is not finite.
"""

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

from bench import harness
from vqdm_cuda import gaussian_w2, reference, wasserstein_loss

DIMENSIONS = [8, 16, 32, 64, 128, 256]
N, K = 8192, 4096
Loss = Callable[[Tensor, Tensor], Tensor]


def covariances(batch: int, d: int) -> tuple[Tensor, Tensor]:  # float64 [batch, d, d]
    generator = torch.Generator().manual_seed(d)
    x, y = (torch.randn(batch, 3 * d + 2, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.mT @ x / (3 * d + 2), y.mT @ y / (3 * d + 2)


def two_eigh(cov1: Tensor, cov2: Tensor, floor: float = 0.0) -> Tensor:
    values, V = torch.linalg.eigh(cov1)
    root = (V * (values.clamp_min(0) + floor).sqrt()[..., None, :]) @ V.mT
    roots = (torch.linalg.eigh(root @ cov2 @ root)[0].clamp_min(0) + floor).sqrt()
    traces = (cov1 + cov2).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (traces - 2 * roots.sum(-1)).clamp_min(0)


def eigh_loss(z: Tensor, e: Tensor) -> Tensor:
    mean1, mean2 = z.mean(0), e.mean(0)
    cov1, cov2 = ((x - m).T @ (x - m) / len(x) for x, m in ((z, mean1), (e, mean2)))
    return ((mean1 - mean2).square().sum() + two_eigh(cov1, cov2, 1e-8) + 1e-10).sqrt()


def pot_loss(z: Tensor, e: Tensor) -> Tensor:
    import ot

    mean1, mean2 = z.mean(0), e.mean(0)
    cov1, cov2 = ((x - m).T @ (x - m) / len(x) for x, m in ((z, mean1), (e, mean2)))
    return ot.gaussian.bures_wasserstein_distance(mean1, mean2, cov1, cov2)


def scipy_distance(cov1: Tensor, cov2: Tensor) -> float:
    """Of each pair the textbook form, by scipy's matrix square root; the sum over the batch."""
    from scipy.linalg import sqrtm

    total = 0.0
    for a, b in zip(cov1.numpy(), cov2.numpy(), strict=True):
        root = sqrtm(a)
        total += float((a.trace() + b.trace() - 2 * sqrtm(root @ b @ root).trace()).real)
    return total


def bench_distance(case: str, device: str, threads: int, seconds: float) -> list[dict[str, object]]:
    batch, _, d = DISTANCES[case]
    on_cpu = covariances(batch, d)
    cov1, cov2 = (S.to(device) for S in on_cpu)
    zero = torch.zeros(d, dtype=torch.float64, device=device)
    calls: dict[str, Callable[[], object]] = {
        harness.OURS: lambda: gaussian_w2(zero, cov1, zero, cov2),
        "two torch.linalg.eigh": lambda: two_eigh(cov1, cov2),
        "reference": lambda: reference.gaussian_w2(zero, cov1, zero, cov2),
    }
    if device == "cuda":
        calls["CPU round trip"] = lambda: two_eigh(cov1.cpu(), cov2.cpu()).to(device)
    else:
        calls["scipy.linalg.sqrtm"] = lambda: scipy_distance(cov1, cov2)
        if harness.has("ot"):
            import ot

            calls["POT"] = lambda: ot.gaussian.bures_wasserstein_distance(zero, zero, cov1[0], cov2[0])
            if batch > 1:
                del calls["POT"]  # one pair at a time
    times = harness.interleaved(calls, seconds=seconds, device=device)
    common = {"op": "gaussian_w2", "case": case, "N": batch, "K": 0, "d": d, "dtype": "float64", "device": device,
              "threads": threads}  # fmt: skip
    return harness.rows(common, times)


def drawn(d: int, near: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    mixing = torch.eye(d) + 0.3 * torch.randn(d, d, generator=generator) / d**0.5
    z = torch.randn(N, d, generator=generator) @ mixing + 0.3
    if near:
        return z, z[:K] @ (torch.eye(d) + 1e-3 * torch.randn(d, d, generator=generator) / d**0.5)
    return z, 1.1 * torch.randn(K, d, generator=generator)


def truth(z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance without tau and its gradient in e, by the reference in float64."""
    e = e.double().requires_grad_()
    w2 = reference.gaussian_w2(*reference.moments(z.double()), *reference.moments(e))
    return w2.detach(), torch.autograd.grad(w2, e)[0]


def errors(loss: Loss, device: str, d: int) -> dict[str, float]:
    """See the head of this file."""
    found = {}
    for near in (False, True):
        z, e = drawn(d, near)
        w2, slope = truth(z, e)
        codes = e.to(device).requires_grad_()
        value = loss(z.to(device), codes)
        value.backward()
        found["near_error" if near else "value_error"] = float((value.double().cpu() ** 2 - w2).abs() / w2)
        expected = slope / (2 * w2.sqrt())
        if near and codes.grad is not None:
            found["near_gradient_error"] = float((codes.grad.double().cpu() - expected).norm() / expected.norm())
    return {name: float(f"{error:.2g}") for name, error in found.items()}


def bench_loss(case: str, device: str, threads: int, seconds: float) -> list[dict[str, object]]:
    _, _, d = LOSSES[case]
    losses: dict[str, Loss] = {harness.OURS: wasserstein_loss, "two eigh and autograd": eigh_loss}
    if harness.has("ot"):
        losses["POT"] = pot_loss
    z, e = (x.to(device).requires_grad_() for x in drawn(d, near=False))

    def step(loss: Loss) -> Callable[[], object]:
        def run() -> None:
            z.grad = e.grad = None
            loss(z, e).backward()

        return run

    def by_reference(z: Tensor, e: Tensor) -> Tensor:
        moments = (*reference.moments(z.double()), *reference.moments(e.double()))
        return (reference.gaussian_w2(*moments) + 1e-10).sqrt()

    times = harness.interleaved({name: step(loss) for name, loss in losses.items()}, seconds=seconds, device=device)
    # Apart: no peer, and its large float64 matrices would cost those that come after it the caches.
    losses["reference"] = by_reference
    times |= harness.interleaved({"reference": step(by_reference)}, seconds=0, device=device)
    common = {"op": "wasserstein_loss", "case": case, "N": N, "K": K, "d": d, "dtype": "float32", "device": device,
              "threads": threads}  # fmt: skip
    rows = harness.rows(common, times)
    for row in rows:
        row |= errors(losses[str(row["implementation"])], device, d)
    return rows


DISTANCES = {f"d {d}, batch {batch}": (batch, 0, d) for batch in (1, 10) for d in DIMENSIONS if batch * d <= 1280}
LOSSES = {f"d {d}": (N, K, d) for d in DIMENSIONS}


@click.command(help=__doc__)
@click.option("--seconds", default=4.0, help="Time per case and thread count.")
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--out", default="bench/results", type=click.Path(path_type=Path))
def main(seconds: float, device: str, out: Path) -> None:
    harness.run_cases(
        "wasserstein_loss", LOSSES, bench_loss, "value_error", "near_error", "near_gradient_error",
        device=device, seconds=seconds, out=out,
    )  # fmt: skip
    harness.run_cases("gaussian_w2", DISTANCES, bench_distance, device=device, seconds=seconds, out=out)


if __name__ == "__main__":
    main()
