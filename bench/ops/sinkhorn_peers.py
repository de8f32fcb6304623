"""Other implementations of Sinkhorn assignment: `Problem` in, indices int64 [H, N] out.

All take the Euclidean cost or its square, over its standard deviation plus 1e-6; eps 0.1; 5 iterations, codes first.
What some of them do otherwise stands with their function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench import harness

EPS, NUM_ITERS, FLOOR = 0.1, 5, 1e-8  # OptVQ's


@dataclass(frozen=True)
class Problem:
    z: Tensor  # [H, N, d]
    e: Tensor  # [H, K, d]
    squared: bool
    std: tuple[float, ...]  # of the costs of each head, for those that cannot take it themselves


Assign = Callable[[Problem], Tensor]


def costs(p: Problem) -> Tensor:  # [H, N, K]
    if not p.squared:
        return torch.cdist(p.z, p.e)
    norms = p.e.square().sum(-1)[:, None]
    return torch.baddbmm(norms, p.z, p.e.mT, alpha=-2).add_(p.z.square().sum(-1, keepdim=True))


def standard_deviation(c: Tensor) -> Tensor:  # [H, N, K] -> [H, 1, 1]
    return c.std(dim=(1, 2), keepdim=True)


def published(p: Problem) -> Tensor:
    """OptVQ's linear recursion with its floors (arXiv 2412.15195), from its formulas; published for Euclidean costs."""
    A = costs(p)
    A = (A - A.mean((1, 2), keepdim=True)) / (standard_deviation(A) + 1e-6)
    A = A - A.amin((1, 2), keepdim=True)
    Q = torch.exp(-A / EPS).mT
    _, K, N = Q.shape
    Q /= Q.sum((1, 2), keepdim=True) + FLOOR
    for _ in range(NUM_ITERS):
        Q /= Q.sum(2, keepdim=True) + FLOOR
        Q /= K
        Q /= Q.sum(1, keepdim=True) + FLOOR
        Q /= N
    Q *= N
    return Q.mT.argmax(2)


def log_domain(p: Problem) -> Tensor:
    """The same without floors, by logsumexp: what vqdm_cuda computes."""
    c = costs(p)
    S = c / (-EPS * (standard_deviation(c) + 1e-6))
    _, N, K = S.shape
    u, v = S.new_zeros(len(S), 1, K), S.new_zeros(len(S), N, 1)
    for _ in range(NUM_ITERS):
        u = -(S + v).logsumexp(1, keepdim=True) - math.log(K)
        v = -(S + u).logsumexp(2, keepdim=True) - math.log(N)
    return (S + u).argmax(2)


def pot(p: Problem) -> Tensor:
    """Its torch backend: on a CPU, numpy's takes half as long again. One head at a time."""
    import ot

    c = costs(p)
    c /= standard_deviation(c) + 1e-6
    a, b = (c.new_full((count,), 1 / count) for count in c.shape[1:])
    plans = [ot.sinkhorn(a, b, M, EPS, method="sinkhorn_log", numItermax=NUM_ITERS, stopThr=0, warn=False) for M in c]
    return torch.stack([plan.argmax(1) for plan in plans])


def geomloss(p: Problem, backend: str) -> Tensor:
    """Averaged updates of both sides at once, another iteration. It takes ten half-steps here, as many as ours.

    Given the standard deviation. Ten half-steps: a first one of each side, three iterations, and a last extrapolation.
    It takes an eps that falls from step to step; a ratio of nearly one keeps it at ours. Then one pass for the argmin.
    """
    from geomloss import SamplesLoss

    power = 2 if p.squared else 1  # its cost is distance^power / power, its eps blur^power
    ratio = 1 - 1e-6
    found = []
    for h, std in enumerate(p.std):
        blur = (EPS * (std + 1e-6) / power) ** (1 / power)
        options = {"blur": blur, "scaling": ratio, "diameter": blur * ratio**-0.5}
        loss = SamplesLoss("sinkhorn", p=power, debias=False, potentials=True, backend=backend, **options)
        _, g = loss(p.z[h], p.e[h])
        if backend == "online":
            from pykeops.torch import LazyTensor

            c = ((LazyTensor(p.z[h, :, None]) - LazyTensor(p.e[h, None])) ** 2).sum(-1)
            c = c if p.squared else c.sqrt()
            found.append((c / power - LazyTensor(g[None, :, None])).argmin(1)[:, 0])
        else:
            c = costs(Problem(p.z[h : h + 1], p.e[h : h + 1], p.squared, ()))[0]
            found.append((c / power - g).argmin(1))
    return torch.stack(found)


def flash_sinkhorn(p: Problem, allow_tf32: bool) -> Tensor:
    """Squared costs alone; given the standard deviation; one head at a time. Stores no [N, K] matrix, as ours."""
    from flash_sinkhorn import c_transform_fwd
    from flash_sinkhorn.sinkhorn_solvers import sinkhorn_flashstyle_alternating

    found = []
    for z, e, std in zip(p.z, p.e, p.std, strict=True):
        a, b = (z.new_full((len(x),), 1 / len(x)) for x in (z, e))
        _, g = sinkhorn_flashstyle_alternating(
            z, e, a, b, eps=EPS * (std + 1e-6), n_iters=NUM_ITERS, allow_tf32=allow_tf32, ott_convention=True
        )
        found.append(c_transform_fwd(z, e, g, allow_tf32=allow_tf32)[1])
    return torch.stack(found)


def peers(squared: bool, device: str) -> dict[str, Assign]:
    """Those that are installed and can take this cost on this device."""
    found: dict[str, Assign] = {"eager, OptVQ's form": published, "reference": log_domain}
    if device == "cuda":
        found["OptVQ's form, compiled"] = torch.compile(published, dynamic=False)
        found["reference, compiled"] = torch.compile(log_domain, dynamic=False)
    if harness.has("ot"):
        found["POT sinkhorn_log"] = pot
    if harness.has("geomloss"):
        found["geomloss tensorized"] = partial(geomloss, backend="tensorized")
        if harness.has("pykeops"):
            found["geomloss online"] = partial(geomloss, backend="online")
    if device == "cuda" and squared and harness.has("flash_sinkhorn"):
        found["flash-sinkhorn"] = partial(flash_sinkhorn, allow_tf32=False)
        found["flash-sinkhorn, TF32"] = partial(flash_sinkhorn, allow_tf32=True)
    return found
