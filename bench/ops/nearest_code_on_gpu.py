"""nearest_code on a GPU beside torch and flash-kmeans: the cases, the peers, and the floor that the chip sets.

Run by `python -m bench.ops.bench_nearest_code --device cuda`. Times are device times between events; a pause queued in
front lets the host run ahead, so that launch gaps of the host do not count, for us or for the peers. `floor_us` is the
larger of the tensor-core, epilogue, L2 and memory times of one half-precision pass at an H200's rates (null elsewhere).
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench import harness
from vqdm_cuda import nearest_code, reference

CASES = {  # name: (N, K, d)
    "A": (20000, 16384, 16),
    "B": (200000, 1024, 32),
    "C": (174080, 100000, 32),
    "D": (65536, 16384, 64),
    "E": (32768, 262144, 256),
}
LARGEST_MATRIX = 24 << 30  # bytes of N x K numbers that a peer may make at once
REFERENCE_ROWS = 64


def floor_us(N: int, K: int, d: int) -> float | None:
    """The least time of a single half-precision pass, in microseconds."""
    if "H200" not in torch.cuda.get_device_name():
        return None
    d16 = (d + 15) // 16 * 16
    tensor_cores = 2 * N * K * d16 / 790e12
    epilogue = N * K / (132 * 64 * 1.755e9)
    l2 = -(-N // 128) * K * d16 * 2 / 5.5e12
    memory = ((N + K) * d * 4 + 12 * N) / 4.3e12
    return 1e6 * max(tensor_cores, epilogue, l2, memory)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def by_addmm(z: Tensor, e: Tensor, rows: int) -> Tensor:
    norms = e.square().sum(1)
    return torch.cat([torch.addmm(norms, part, e.T, alpha=-2).argmin(1) for part in z.split(rows)])


def implementations(z: Tensor, e: Tensor) -> dict[str, Callable[[], Tensor]]:
    rows = max(1, LARGEST_MATRIX // (4 * len(e)))
    compiled = torch.compile(by_addmm, mode="max-autotune-no-cudagraphs")

    def addmm(allow_tf32: bool, function: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        with tf32(allow_tf32):
            return function(z, e, rows)

    calls: dict[str, Callable[[], Tensor]] = {
        harness.OURS: lambda: nearest_code(z, e)[1],
        "vqdm_cuda bfloat16 z": lambda: nearest_code(z.bfloat16(), e)[1],
        "torch.addmm": lambda: addmm(False, by_addmm),
        "torch.addmm TF32": lambda: addmm(True, by_addmm),
        "torch.addmm TF32 compiled": lambda: addmm(True, compiled),
    }
    if 4 * len(z) * len(e) <= LARGEST_MATRIX:
        calls["torch.cdist"] = lambda: torch.cdist(z, e).argmin(1)
    try:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton
    except ImportError:
        return calls
    norms = z.square().sum(1)[None]
    calls["flash-kmeans"] = lambda: euclid_assign_triton(z[None], e[None], norms)[0]
    return calls


def bench_case(case: str, seconds: float) -> list[dict[str, object]]:
    N, K, d = CASES[case]
    generator = torch.Generator().manual_seed(0)
    z, e = (torch.randn(count, d, generator=generator).cuda() for count in (N, K))
    calls = implementations(z, e)
    exact = nearest_code(z, e)[1]
    some = torch.randperm(N, generator=generator)[:REFERENCE_ROWS].cuda()
    assert torch.equal(reference.nearest_code(z[some], e)[1], exact[some]), "the answer is wrong: no time counts"
    wrong = {name: int((call() != exact).sum()) for name, call in calls.items()}
    memory = harness.peak_extra_bytes(calls[harness.OURS], device="cuda")
    times = harness.interleaved(calls, seconds=seconds, device="cuda")
    times["reference"] = [
        ms * N / REFERENCE_ROWS
        for ms in harness.interleaved(
            {"reference": lambda: reference.nearest_code(z[:REFERENCE_ROWS], e)}, seconds=0, device="cuda"
        )["reference"]
    ]
    floor = floor_us(N, K, d)
    common = {"op": "nearest_code", "case": case, "N": N, "K": K, "d": d, "dtype": "float32", "device": "cuda"}
    rows = harness.rows(common, times)
    for row in rows:
        row["wrong_indices"] = wrong.get(str(row["implementation"]), 0)
        if row["implementation"] == "reference":
            row["scaled_from_rows"] = REFERENCE_ROWS
        if row["implementation"] == harness.OURS:
            row["peak_extra_bytes"] = memory
            row["floor_us"] = floor
            row["times_floor"] = None if floor is None else round(1e3 * float(str(row["median_ms"])) / floor, 2)
    return rows


def main(seconds: float, out: Path) -> None:
    print(f"{harness.machine()}, commit {harness.commit()}, torch {torch.__version__}")
    results = []
    for case, (N, K, d) in CASES.items():
        rows = bench_case(case, seconds)
        harness.print_rows(f"{case}: N = {N}, K = {K}, d = {d}", rows, "wrong_indices", "floor_us", "times_floor")
        results += rows
    print(f"\nwritten to {harness.write(results, out, 'nearest_code')}")
