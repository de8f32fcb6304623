"""nearest_code beside faiss, scikit-learn and the ways it is written in PyTorch.

    python -m bench.ops.bench_nearest_code [--seconds 6] [--device cpu|cuda] [--out bench/results]

Features and codes are drawn from N(0, I). `reference` (float64, pure PyTorch) is timed on its first 64 rows and scaled.
`wrong_indices` counts the rows whose index differs from vqdm_cuda's, which itself is compared with `reference` on these
64 rows. Peak memory is what one call adds to the resident set, its outputs and the packed codebook (2 K d bytes in
16-bit integers, 4 K d in float32) included.
`fma_peak_gflops` is what fp32 fused multiply-adds on registers alone reach on as many threads at once, measured before
each case; `gflops` (2 N K d / median) may exceed it, as the 16-bit filter does two products in the place of one.
"""

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

from bench import harness
from bench.ops import nearest_code_on_gpu
from vqdm_cuda import _C, build_info, nearest_code, reference

CASES = {  # name: (N, K, d)
    "A": (20000, 16384, 16),
    "B": (200000, 1024, 32),
    "C": (16384, 16384, 64),
    "D": (4096, 16384, 256),
    "E": (20000, 16384, 8),
}
REFERENCE_ROWS = 64


def implementations(z: Tensor, e: Tensor) -> dict[str, Callable[[], object]]:
    """Callables that return the indices of the nearest codes."""
    rows = max(1, (1 << 28) // (4 * len(e)))  # a buffer of 256 MB
    calls: dict[str, Callable[[], object]] = {
        harness.OURS: lambda: nearest_code(z, e)[1],
        "torch.cdist": lambda: torch.cdist(z, e).argmin(1),
        "torch.addmm": lambda: torch.addmm(e.square().sum(1), z, e.T, alpha=-2).argmin(1),
        "torch.addmm chunked": lambda: torch.cat(
            [torch.addmm(e.square().sum(1), part, e.T, alpha=-2).argmin(1) for part in z.split(rows)]
        ),
    }
    import faiss
    from sklearn.metrics import pairwise_distances_argmin

    z_array, e_array = z.numpy(), e.numpy()
    calls["faiss"] = lambda: torch.from_numpy(faiss.knn(z_array, e_array, 1)[1][:, 0])
    calls["scikit-learn"] = lambda: torch.from_numpy(pairwise_distances_argmin(z_array, e_array))
    return calls


def bench_case(case: str, threads: int, seconds: float) -> list[dict[str, object]]:
    N, K, d = CASES[case]
    generator = torch.Generator().manual_seed(0)
    z, e = (torch.randn(count, d, generator=generator) for count in (N, K))
    calls = implementations(z, e)
    nearest_code(z[:100], e[:100])  # what a first call starts (threads, libraries) is not the search's
    memory = harness.peak_extra_bytes(calls[harness.OURS])
    peak = _C.fma_peak_gflops(milliseconds=200, threads=threads)
    exact = nearest_code(z, e)[1]
    wrong = {name: int((torch.as_tensor(call()) != exact).sum()) for name, call in calls.items()}
    times = harness.interleaved(calls, seconds=seconds)
    few = z[:REFERENCE_ROWS]
    reference_times = harness.interleaved({"reference": lambda: reference.nearest_code(few, e)}, seconds=0)
    times["reference"] = [ms * N / REFERENCE_ROWS for ms in reference_times["reference"]]
    wrong["reference"] = int((reference.nearest_code(few, e)[1] != exact[:REFERENCE_ROWS]).sum())

    common = {"op": "nearest_code", "case": case, "N": N, "K": K, "d": d, "dtype": "float32", "device": "cpu",
              "threads": threads}  # fmt: skip
    rows = harness.rows(common, times)
    for row in rows:
        row["wrong_indices"] = wrong[str(row["implementation"])]
        if row["implementation"] == harness.OURS:
            gflops = 2e-6 * N * K * d / float(str(row["median_ms"]))
            row["gflops"] = round(gflops, 1)
            row["fma_peak_gflops"] = round(peak, 1)
            row["percent_of_peak"] = round(100 * gflops / peak, 1)
            row["peak_extra_bytes"] = memory
        if row["implementation"] == "reference":
            row["scaled_from_rows"] = REFERENCE_ROWS
    return rows


@click.command(help=__doc__)
@click.option("--seconds", default=6.0, help="Time per case and thread count.")
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--out", default="bench/results", type=click.Path(path_type=Path))
def main(seconds: float, device: str, out: Path) -> None:
    if device == "cuda":
        nearest_code_on_gpu.main(seconds, out)
    else:
        on_cpu(seconds, out)


def on_cpu(seconds: float, out: Path) -> None:
    info = build_info()
    print(f"{harness.machine()}, commit {harness.commit()}, torch {torch.__version__}, kernel {info['cpu_kernel']}")
    most = torch.get_num_threads()
    results = []
    for threads in sorted({most, 1}, reverse=True):
        _set_threads(threads)
        for case in CASES:
            rows = bench_case(case, threads, seconds)
            results += rows
            N, K, d = CASES[case]
            print(f"\n{case}: N = {N}, K = {K}, d = {d}, {threads} thread{'s' * (threads > 1)}")
            for row in rows:
                print(
                    f"  {row['implementation']:20} {row['median_ms']:>12.2f} ms   x {row['ratio']:<9.2f} "
                    f"wrong indices {row['wrong_indices']}"
                )
            ours = rows[0]
            print(
                f"  {ours['gflops']} GFLOP/s, {ours['percent_of_peak']} % of the {ours['fma_peak_gflops']} of "
                f"fused multiply-adds, peak extra memory {int(str(ours['peak_extra_bytes'])) / 2**20:.1f} MB"
            )
    _set_threads(most)
    print(f"\nwritten to {harness.write(results, out, 'nearest_code')}")


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        import faiss
        from threadpoolctl import threadpool_limits
    except ImportError:
        return  # peers that are measured on the CPU alone
    faiss.omp_set_num_threads(threads)
    threadpool_limits(threads)


if __name__ == "__main__":
    main()
