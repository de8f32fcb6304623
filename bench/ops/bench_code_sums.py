"""code_sums beside the ways in which PyTorch adds rows by index.

    python -m bench.ops.bench_code_sums [--seconds 4] [--device cpu|cuda] [--out bench/results]

Features are drawn from N(0, I), indices evenly (in case D all are equal). vqdm_cuda returns the counts too, the peers
the sums alone. `same_bits`: whether ten calls agree bit for bit, on the CPU with one thread and with all in turn.
`max_error`: the largest difference from the definition, relative to the largest sum. `reference` (pure PyTorch) is
timed once.
"""

import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import harness
from vqdm_cuda import code_sums, reference

CASES = {  # name: (N, K, d)
    "A": (65536, 1024, 32),
    "B": (65536, 16384, 64),
    "C": (174080, 100000, 32),  # 256 images of 680 tokens, the paper's largest codebook
    "D": (262144, 1024, 16),  # every row in one code
}
LARGEST_ONE_HOT = 1 << 26  # entries, of 8 and then 4 bytes each


def implementations(z: Tensor, indices: Tensor, K: int) -> dict[str, Callable[[], Tensor]]:
    """Callables that return the sums [K, d]."""
    (N, d), column = z.shape, indices[:, None]
    codes = torch.zeros(K, d, device=z.device, requires_grad=True)
    embedded = F.embedding(indices, codes)

    def index_add() -> Tensor:
        return z.new_zeros(K, d).index_add_(0, indices, z)

    def index_add_deterministic() -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            return index_add()
        finally:
            torch.use_deterministic_algorithms(False)

    calls: dict[str, Callable[[], Tensor]] = {
        harness.OURS: lambda: code_sums(z, indices, K)[0],
        "index_add_": index_add,
        "index_add_ in float64": lambda: (
            z.new_zeros(K, d, dtype=torch.float64).index_add_(0, indices, z.double()).float()
        ),
        "scatter_add_": lambda: z.new_zeros(K, d).scatter_add_(0, column.expand(N, d), z),
        "embedding backward": lambda: torch.autograd.grad(embedded, codes, z, retain_graph=True)[0],
    }
    if z.is_cuda:
        calls["index_add_ deterministic"] = index_add_deterministic
    return calls


def same_bits(call: Callable[[], Tensor], device: str) -> bool:
    """Whether ten calls give the same bits, for any number of threads."""
    most = torch.get_num_threads()
    first, same = call(), True
    for threads in 5 * [1, most] if device == "cpu" else 10 * [most]:
        torch.set_num_threads(threads)
        same &= torch.equal(call(), first)
    torch.set_num_threads(most)
    return same


def bench_case(case: str, device: str, threads: int, seconds: float) -> list[dict[str, object]]:
    N, K, d = CASES[case]
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N, d, generator=generator).to(device)
    indices = torch.randint(0, K, (N,), generator=generator).to(device)
    if case == "D":
        indices.fill_(K // 2)
    calls = implementations(z, indices, K)
    start = time.perf_counter()
    exact = reference.code_sums(z, indices, K)[0]
    reference_ms = 1e3 * (time.perf_counter() - start)
    times = harness.interleaved(calls, seconds=seconds, device=device) | {"reference": [reference_ms]}
    if N * K <= LARGEST_ONE_HOT:  # on its own: it would leave cold caches to the next in turn
        calls["one-hot matmul"] = lambda: F.one_hot(indices, K).to(z.dtype).T @ z
        times |= harness.interleaved({"one-hot matmul": calls["one-hot matmul"]}, seconds=0, device=device)
    facts: dict[str, dict[str, object]] = {}
    for name, call in calls.items():
        facts[name] = {
            "same_bits": same_bits(call, device),
            "max_error": float(f"{float((call() - exact).abs().max() / exact.abs().max()):.2g}"),
            "peak_extra_bytes": harness.peak_extra_bytes(call, device=device),
        }
    common = {"op": "code_sums", "case": case, "N": N, "K": K, "d": d, "dtype": "float32", "device": device,
              "threads": threads}  # fmt: skip
    return [row | facts.get(str(row["implementation"]), {}) for row in harness.rows(common, times)]


@click.command(help=__doc__)
@click.option("--seconds", default=4.0, help="Time per case and thread count.")
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--out", default="bench/results", type=click.Path(path_type=Path))
def main(seconds: float, device: str, out: Path) -> None:
    harness.run_cases(
        "code_sums", CASES, bench_case, "same_bits", "max_error", "peak_extra_bytes",
        device=device, seconds=seconds, out=out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
