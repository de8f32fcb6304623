"""The interpreter that runs CUDA kernels on the host: it finds planted faults, and lets sound kernels pass."""

import numpy as np
import pytest
import torch

import simt
from cases import NO_SIMT
from vqdm_cuda import code_sums, nearest_code

pytestmark = NO_SIMT

SCHEDULES = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]

FAULTS = {
    "missing_barrier": "shared memory: .* (with no barrier between|before it is written)",
    "missing_barrier_before_reuse": "a race: .* with no barrier between",
    "missing_warp_barrier": "shared memory: .* (with no barrier between|before it is written)",
    "barrier_of_a_warp_for_two": "shared memory: .* (with no barrier between|before it is written)",
    "out_of_bounds": "index 64 of an array of 64|before it is written",
    "more_than_launched": "4096 bytes are taken of the 512",
    "never_written": "is read before it is written",
    "divergent_barrier": "divergent barrier: threads wait at faults.cpp:[0-9]+ and at faults.cpp:[0-9]+",
    "barrier_not_reached_by_all": "divergent barrier: it waits at faults.cpp",
    "divergent_shuffle": "divergent warp operation: it waits at faults.cpp",
    "copy_read_too_early": "is touched while a copy to it is under way",
    "copy_over_what_is_read": "a race: .* with no barrier between|while a copy to it is under way",
    "copy_waited_for_by_nobody": "is touched while a copy to it is under way",
    "reader_after_other_readers": "a race: .* with no barrier between",
}


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_under_every_schedule(fault: str, schedule: str, seed: int) -> None:
    module = simt.module()
    module.set_schedule(schedule, seed)
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        module.run_fault(fault)
    module.run_fault("sound")  # and the interpreter goes on


def test_what_is_read_beyond_an_array_is_found_though_the_next_array_lies_there() -> None:
    module = simt.module()
    messages = set()
    for seed in range(20):
        module.set_schedule("random", seed)
        with pytest.raises(RuntimeError) as raised:
            module.run_fault("out_of_bounds")
        messages.add(str(raised.value).partition(": shared")[2])
    assert any("index 64 of an array of 64" in message for message in messages)


def test_a_missing_barrier_in_global_memory_shows_in_the_results_of_schedules() -> None:
    module = simt.module()
    results = set()
    for schedule, seed in SCHEDULES:
        module.set_schedule(schedule, seed)
        results.add(tuple(module.run_fault("missing_barrier_in_global_memory")))
    assert len(results) > 1


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_sound_kernels_pass(schedule: str, seed: int) -> None:
    module = simt.module()
    module.set_schedule(schedule, seed)
    threads = np.arange(128) % 64
    assert module.run_fault("sound") == (threads ^ 33).tolist()
    assert module.run_fault("sound_within_warps") == (threads ^ 1).tolist()
    assert module.run_fault("sound_copy") == [4] * 128
    assert module.run_fault("sound_votes") == [1] * 128


def test_operators_go_to_the_cuda_kernels_within_and_not_beyond(monkeypatch) -> None:
    monkeypatch.setenv("VQDM_CUDA_KERNEL", "no such kernel")  # which the CPU kernels do not look at
    z, beyond = torch.zeros(2, 1), torch.tensor([0, 5])
    for _ in range(2):
        with simt.kernels():
            with pytest.raises(ValueError, match="expected VQDM_CUDA_KERNEL to be portable or tensor_core"):
                nearest_code(z, z)
            with pytest.raises(RuntimeError, match=r"simt: .* expected indices in \[0, num_codes\)"):
                code_sums(z, beyond, 2)
        assert nearest_code(z, z)[1].tolist() == [0, 0]
        with pytest.raises(ValueError, match="got values from 0 to 5"):
            code_sums(z, beyond, 2)


def test_every_fault_is_tested() -> None:
    names = set(simt.module().fault_names())
    assert {name for name in names if not name.startswith("sound")} == {*FAULTS, "missing_barrier_in_global_memory"}


# ---- matrix fragments, by the tables of the PTX manual for mma.m16n8k16 ----


def half_bits(x: np.ndarray, bfloat16: bool) -> np.ndarray:
    if bfloat16:
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint32)
    return x.astype(np.float16).view(np.uint16).astype(np.uint32)


def a_fragments(A: np.ndarray, bfloat16: bool) -> list[int]:
    """a_i of a lane: row = group for i in 0, 1, 4, 5 else group + 8; column = 2 (lane % 4) + i % 2, + 8 for i >= 4."""
    words = []
    for lane in range(32):
        numbers = [
            A[lane // 4 + (8 if i % 4 >= 2 else 0), lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)] for i in range(8)
        ]
        bits = half_bits(np.array(numbers), bfloat16)
        words += [int(bits[2 * r] | bits[2 * r + 1] << 16) for r in range(4)]
    return words


def b_fragments(B: np.ndarray, bfloat16: bool) -> list[int]:
    """b_i of a lane: row = 2 (lane % 4) + i % 2, + 8 for i >= 2; column = group."""
    words = []
    for lane in range(32):
        numbers = [B[lane % 4 * 2 + i % 2 + (8 if i >= 2 else 0), lane // 4] for i in range(4)]
        bits = half_bits(np.array(numbers), bfloat16)
        words += [int(bits[2 * r] | bits[2 * r + 1] << 16) for r in range(2)]
    return words


def c_places() -> list[tuple[int, int]]:
    """c_i of a lane: row = group, + 8 for i >= 2; column = 2 (lane % 4) + i % 2."""
    return [(lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2) for lane in range(32) for i in range(4)]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_fragment_product(bfloat16: bool) -> None:
    generator = np.random.default_rng(0)
    # Few digits, so that the product is exact however it is summed.
    A, B, C = (generator.integers(-16, 17, shape) / 8 for shape in ((16, 16), (16, 8), (16, 8)))
    places = c_places()
    got = simt.module().run_mma(
        bfloat16, a_fragments(A, bfloat16), b_fragments(B, bfloat16), [float(C[place]) for place in places]
    )
    expected = A @ B + C
    assert got == [expected[place] for place in places]


def test_fragment_product_is_inexact_and_within_the_bound_of_the_filter() -> None:
    """|error| <= 18 2^-23 of the largest partial sum: what nearest_code_tensor_core.cuh allows for 16 dimensions."""
    generator = np.random.default_rng(1)
    worst = 0.0
    for _ in range(200):
        A, B = (generator.standard_normal(shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
        C = generator.standard_normal((16, 8)).astype(np.float32) * 10
        got = simt.module().run_mma(
            False, a_fragments(A, False), b_fragments(B, False), [float(C[p]) for p in c_places()]
        )
        exact = A.astype(np.float64) @ B.astype(np.float64) + C
        size = np.abs(A.astype(np.float64)) @ np.abs(B.astype(np.float64)) + np.abs(C)
        error = np.array([abs(g - exact[p]) / size[p] for g, p in zip(got, c_places(), strict=True)])
        worst = max(worst, error.max())
    assert 2**-26 < worst < 18 * 2**-23
