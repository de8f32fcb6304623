"""sinkhorn beside OptVQ's form in eager PyTorch, a log-domain one, POT, geomloss and flash-sinkhorn.

    python -m bench.ops.bench_sinkhorn [--seconds 8] [--device cpu|cuda] [--out bench/results]

From features and codes, drawn from N(0, I), to the index of each feature: costs, their standard deviation, 5 iterations
at eps 0.1, and the argmax, all counted. How peers differ is said in bench/ops/sinkhorn_peers.py. `reference` is the log
domain in float32 PyTorch, the [N, K] matrix stored.

`equal_to_exact` and `equal_to_published`: per cent of the indices that are those of float64, by the log domain without
a floor and by OptVQ's recursion with its floors of 1e-8. vqdm_cuda, the reference, POT and flash-sinkhorn compute the
first, OptVQ's form and "vqdm_cuda, floor 1e-8" the second; geomloss nears the first in another way, and slower.

`peak_extra_bytes`: what one call adds, on a CPU to the resident set of a process of its own, with all threads.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor

from bench import harness
from bench.ops import sinkhorn_peers
from bench.ops.sinkhorn_peers import EPS, FLOOR, NUM_ITERS, Assign, Problem
from vqdm_cuda import sinkhorn


class Case(NamedTuple):
    N: int
    K: int
    d: int
    cost: str
    heads: int = 1
    peers: tuple[str, ...] = ()  # these alone; all where none is named


CASES = {
    "cpu": {
        "A": Case(4096, 8192, 32, "euclidean"),
        "A squared": Case(4096, 8192, 32, "sqeuclidean"),
        "B": Case(2048, 2048, 64, "euclidean"),
        "C": Case(8192, 16384, 64, "euclidean", peers=("eager, OptVQ's form",)),
    },
    "cuda": {
        "S1": Case(16384, 16384, 64, "euclidean"),
        "S1 squared": Case(16384, 16384, 64, "sqeuclidean"),
        "S2": Case(4096, 8192, 32, "euclidean", heads=4),
        "S2 squared": Case(4096, 8192, 32, "sqeuclidean", heads=4),
    },
}


def ours(p: Problem, floor: float) -> Tensor:
    cost = "sqeuclidean" if p.squared else "euclidean"
    return sinkhorn(p.z, p.e, eps=EPS, num_iters=NUM_ITERS, cost=cost, floor=floor)[2]


@cache
def implementations(case: Case, device: str) -> dict[str, Assign]:
    peers = sinkhorn_peers.peers(case.cost == "sqeuclidean", device)
    return {
        harness.OURS: partial(ours, floor=0.0),
        "vqdm_cuda, floor 1e-8": partial(ours, floor=FLOOR),
        **{name: peer for name, peer in peers.items() if not case.peers or name in case.peers},
    }


def drawn(case: Case, device: str, dtype: torch.dtype = torch.float32, std: tuple[float, ...] = ()) -> Problem:
    generator = torch.Generator().manual_seed(0)
    z, e = (torch.randn(case.heads, count, case.d, generator=generator) for count in case[:2])
    return Problem(z.to(device, dtype), e.to(device, dtype), case.cost == "sqeuclidean", std)


@cache
def in_float64(case: Case, device: str) -> tuple[tuple[float, ...], Tensor, Tensor]:
    """The standard deviations of the costs, and the indices of the log domain and of the published recursion."""
    p = drawn(case, device, torch.float64)
    std = sinkhorn_peers.standard_deviation(sinkhorn_peers.costs(p))
    return tuple(std.flatten().tolist()), sinkhorn_peers.log_domain(p), sinkhorn_peers.published(p)


@cache
def peak_extra_bytes(case: Case, name: str, device: str) -> int:
    assign, std = implementations(case, device)[name], in_float64(case, device)[0]
    if device == "cuda":
        return harness.peak_extra_bytes(partial(assign, drawn(case, device, std=std)), device=device)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(peak_on_cpu, assign, case, std).result()


def peak_on_cpu(assign: Assign, case: Case, std: tuple[float, ...]) -> int:
    assign(drawn(case._replace(N=64, K=64), "cpu", std=std))  # what a first call starts is not the problem's
    return harness.peak_extra_bytes(partial(assign, drawn(case, "cpu", std=std)))


def bench_case(name: str, device: str, threads: int, seconds: float) -> list[dict[str, object]]:
    case = CASES[device][name]
    std, exact, published = in_float64(case, device)
    p = drawn(case, device, std=std)
    calls: dict[str, Callable[[], Tensor]] = {
        implementation: partial(assign, p) for implementation, assign in implementations(case, device).items()
    }
    indices = {implementation: call() for implementation, call in calls.items()}
    times = harness.interleaved(calls, seconds=seconds, device=device)
    common = {"op": "sinkhorn", "case": name, "N": case.N, "K": case.K, "d": case.d, "heads": case.heads,
              "cost": case.cost, "dtype": "float32", "device": device, "threads": threads}  # fmt: skip
    rows = harness.rows(common, times)
    for row in rows:
        implementation = str(row["implementation"])
        row["equal_to_exact"] = per_cent(indices[implementation] == exact)
        row["equal_to_published"] = per_cent(indices[implementation] == published)
        row["peak_extra_bytes"] = peak_extra_bytes(case, implementation, device)
    return rows


def per_cent(equal: Tensor) -> float:
    return round(100 * equal.double().mean().item(), 2)


@click.command(help=__doc__)
@click.option("--seconds", default=8.0, help="Time per case and thread count.")
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--out", default="bench/results", type=click.Path(path_type=Path))
def main(seconds: float, device: str, out: Path) -> None:
    harness.run_cases(
        "sinkhorn", {name: case[:3] for name, case in CASES[device].items()}, bench_case,
        "min_ms", "equal_to_exact", "equal_to_published", "peak_extra_bytes", device=device, seconds=seconds, out=out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
