"""Fair timing: all implementations of a case in one run, interleaved, medians of many, and a JSON row for each.

A row: {op, case, N, K, d, dtype, device, threads, implementation, median_ms, min_ms, ratio, wrong_indices, ...} with
ratio = this implementation's median over ours in the same run (above one: ours is faster).
"""

import ctypes
import importlib.util
import json
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

OURS = "vqdm_cuda"


def interleaved(
    implementations: Mapping[str, Callable[[], object]], *, seconds: float, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time each callable in turn, round after round, for about `seconds` in all (at least 3 rounds); milliseconds.

    What is much faster than the slowest is timed up to ten times a round, so that its median is one of many.
    """

    once = _on_gpu if device == "cuda" else _on_cpu

    for call in implementations.values():
        once(call)  # warm-up: code paths, thread pools, allocator
    first = {name: once(call) for name, call in implementations.items()}
    repeats = {name: max(1, min(10, int(max(first.values()) / (3 * ms)))) for name, ms in first.items()}
    times: dict[str, list[float]] = {name: [] for name in implementations}
    start = time.perf_counter()
    rounds = 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        rounds += 1
        for name, call in implementations.items():
            times[name] += [once(call) for _ in range(repeats[name])]
    return times


def _on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _on_gpu(call: Callable[[], object]) -> float:
    """Device time between two events. The pause in front lets the host queue the call before the first event."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)  # cycles
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def rows(common: dict[str, object], times: dict[str, list[float]]) -> list[dict[str, object]]:
    """One JSON row per implementation."""
    ours = median(times[OURS])
    return [
        {
            **common,
            "implementation": name,
            "median_ms": round(median(ms), 4),
            "min_ms": round(min(ms), 4),
            "rounds": len(ms),
            "ratio": round(median(ms) / ours, 3),
        }
        for name, ms in times.items()
    ]


def peak_extra_bytes(call: Callable[[], object], *, device: str = "cpu") -> int:
    """How far one call raises the resident set (of a GPU: what torch has allocated) above where it stood before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator keeps would hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    resident = _status()["VmRSS"]
    call()
    return _status()["VmHWM"] - resident


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def print_rows(title: str, rows: list[dict[str, object]], *details: str) -> None:
    """The rows of one case as a table, with these fields of each beside the time."""
    print(f"\n{title}")
    for row in rows:
        values = ", ".join(f"{name} {row[name]}" for name in details if name in row)
        print(f"  {row['implementation']:34} {row['median_ms']:>12.3f} ms   x {row['ratio']:<9.2f} {values}")


def run_cases(
    op: str,
    cases: Mapping[str, tuple[int, int, int]],  # name: (N, K, d)
    bench_case: Callable[[str, str, int, float], list[dict[str, object]]],  # (case, device, threads, seconds) -> rows
    *details: str,
    device: str,
    seconds: float,
    out: Path,
) -> None:
    """All cases, on the CPU with all threads and then with one: each printed as a table, all written to a file."""
    print(f"{machine()}, commit {commit()}, torch {torch.__version__}")
    most = torch.get_num_threads()
    results = []
    for threads in sorted({most, 1}, reverse=True) if device == "cpu" else [most]:
        torch.set_num_threads(threads)
        for case, (N, K, d) in cases.items():
            rows = bench_case(case, device, threads, seconds)
            print_rows(f"{case}: N = {N}, K = {K}, d = {d}, {threads} thread{'s' * (threads > 1)}", rows, *details)
            results += rows
    torch.set_num_threads(most)
    print(f"\nwritten to {write(results, out, op)}")


def has(peer: str) -> bool:
    """Whether the peer is installed; says so where it is not."""
    found = importlib.util.find_spec(peer) is not None
    if not found:
        print(f"{peer} is not installed: measured without it")
    return found


def machine() -> str:
    """The processor (or GPU) that was measured, as a short name."""
    if torch.cuda.is_available():
        return _slug(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return _slug(f"{found[1] if found else platform.machine()} {torch.get_num_threads()} threads")


def commit() -> str:
    """The commit that was measured; "unknown" in a copy without git's metadata."""
    try:
        ran = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return ran.stdout.strip()


def write(results: list[dict[str, object]], folder: Path, op: str) -> Path:
    """Write the rows as JSON lines to <folder>/<op>-<machine>-<commit>.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{op}-{machine()}-{commit()}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in results))
    return path


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
