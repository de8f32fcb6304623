"""vqdm_train.window: means of terms, exact counts of the codes by scale, head and depth, over steps and processes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gloo_ranks import run
from tiny_run import ALONE
from vqdm_cuda import MultiHeadQuantizer, MultiScaleQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer
from vqdm_train.distributed import World
from vqdm_train.window import Window


def vector() -> VectorQuantizer:
    return VectorQuantizer(8, 2)


def filled(quantizer: Quantizer, *indices: object, world: World = ALONE) -> dict[str, float]:
    """The summary of steps that used these indices."""
    window = Window(quantizer, world)
    for of_step in indices:
        window.add({"loss": torch.tensor(1.0)}, [of_step], 4, 0.1, 1.0)  # type: ignore[list-item]
    return window.summary()


# --- values -----------------------------------------------------------------------------------------------------------


def test_terms_are_means_over_the_steps_that_had_them() -> None:
    window = Window(vector(), ALONE)
    indices = [torch.tensor([[0]])]
    window.add({"loss": torch.tensor(1.0)}, indices, 4, 0.1, 0.5)
    window.add({"loss": torch.tensor(2.0), "adversarial": torch.tensor(5.0)}, indices, 4, 0.2, 0.5)
    window.add({"loss": torch.tensor(6.0), "adversarial": torch.tensor(7.0)}, indices, 4, 0.0, 1.0)
    summary = window.summary()
    assert (summary["loss"], summary["adversarial"]) == (3.0, 6.0)
    assert summary["images_per_second"] == 6.0
    assert summary["data_wait"] == pytest.approx(0.1)
    assert summary["data_wait_share"] == pytest.approx(0.15)
    assert 0.01 < summary["peak_memory_gib"] < 1000


def test_a_summary_starts_the_next_window() -> None:
    window = Window(vector(), ALONE)
    window.add({"adversarial": torch.tensor(5.0)}, [torch.tensor([[0]])], 4, 0.1, 0.5)
    window.summary()
    assert window.steps == 0
    window.add({"loss": torch.tensor(1.0)}, [torch.tensor([[3]])], 2, 0.0, 1.0)
    summary = window.summary()
    assert "adversarial" not in summary
    assert (summary["loss"], summary["tokens"], summary["images_per_second"]) == (1.0, 1, 2.0)
    assert window.counts[""].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_micro_batches_are_counted_together() -> None:
    window = Window(vector(), ALONE)
    window.add({"loss": torch.tensor(1.0)}, [torch.tensor([[0, 1]]), torch.tensor([[1, 2]])], 4, 0.0, 1.0)
    assert window.summary()["utilization"] == 3 / 8
    assert window.counts[""].tolist() == [1, 2, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("scales", [[1, 2, 4], [(1, 2), (2, 4)]])
def test_scales(scales: list[int]) -> None:
    quantizer = MultiScaleQuantizer(vector(), scales)
    h, w = quantizer.latent_size
    indices = quantizer(torch.randn(3, 2, h, w)).indices
    summary = filled(quantizer, indices, indices)
    names = ["scale_1", "scale_2", "scale_4"] if isinstance(scales[0], int) else ["scale_1x2", "scale_2x4"]
    assert [key for key in summary if key.startswith("utilization_")] == [f"utilization_{name}" for name in names]
    for name, of_scale in zip(names, indices, strict=True):
        p = torch.bincount(of_scale.flatten(), minlength=8).double() / of_scale.numel()
        assert summary[f"utilization_{name}"] == float((p > 0).double().mean())
        assert summary[f"perplexity_{name}"] == pytest.approx(float(torch.special.entr(p).sum().exp()))
    everything = torch.cat([of_scale.flatten() for of_scale in indices])
    assert summary["utilization"] == len(everything.unique()) / 8
    assert summary["tokens"] == 2 * len(everything)


def test_depths_and_heads() -> None:
    indices = torch.tensor([[0, 1], [0, 2], [0, 3]])  # [N, 2]
    for quantizer in (ResidualQuantizer(vector(), 2), MultiHeadQuantizer(vector(), 2)):
        summary = filled(quantizer, indices)
        word = "depth" if isinstance(quantizer, ResidualQuantizer) else "head"
        assert summary[f"utilization_{word}_1"] == 1 / 8
        assert summary[f"utilization_{word}_2"] == 3 / 8
        assert summary["utilization"] == 4 / 8
    first = MultiHeadQuantizer(vector(), 2, heads_first=True)
    summary = filled(first, indices.view(3, 1, 2, 1).movedim(2, 1))  # [B, H, h, w]
    assert (summary["utilization_head_1"], summary["utilization_head_2"]) == (1 / 8, 3 / 8)


def test_a_plain_quantizer_has_no_parts() -> None:
    assert not [key for key in filled(vector(), torch.tensor([[0]])) if "_scale_" in key or "_head_" in key]


# --- processes --------------------------------------------------------------------------------------------------------


def _of_rank(rank: int, size: int) -> dict[str, Tensor]:
    world = World(rank=rank, size=size, device=torch.device("cpu"))
    quantizer = ResidualQuantizer(VectorQuantizer(8, 2), 2)
    window = Window(quantizer, world)
    indices = torch.tensor([[0, rank], [1, 4 + rank]])
    terms = {"loss": torch.tensor(1.0 + rank)}
    window.add(terms, [indices], 2, 0.5 * rank, 1.0 + rank)
    window.add(terms | {"adversarial": torch.tensor(3.0 * rank)}, [indices], 2, 0.0, 1.0)
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in window.summary().items()}


def test_processes_say_the_same_and_count_all_tokens(tmp_path: Path) -> None:
    first, second = run(_of_rank, 2, tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected = {
        "loss": 1.5,
        "adversarial": 1.5,
        "tokens": 16,
        "utilization": 4 / 8,  # 0 and 1 at the first depth, 0, 1, 4 and 5 at the second
        "utilization_depth_1": 2 / 8,
        "utilization_depth_2": 4 / 8,
        "images_per_second": 8 / 2.5,
        "data_wait": 0.125,
        "data_wait_share": 0.1,
    }
    assert {name: float(first[name]) for name in expected} == pytest.approx(expected)
