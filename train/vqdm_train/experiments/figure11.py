"""Figure 11 of the Wasserstein VQ paper, a drawing: what Criteria 2 and 3 see, and what each misses.

Features lie close around codes, so many around each, and are assigned to their nearest codes; U and C are of these
assignments. Half the codes in use, evenly, have a higher C than all codes used unevenly: neither U nor C alone can tell
a collapse. All codes used evenly have U = 100 % and C = K.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vqdm_cuda import nearest_code, perplexity, utilization
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.plane import draw_cells, handles

__all__ = ["CASES", "FULL", "QUICK", "Settings", "run"]

# How many features lie around each code.
CASES = {
    "half the codes used": (24, 24, 24, 24, 0, 0, 0, 0),
    "all codes used, unevenly": (75, 6, 4, 3, 2, 2, 2, 2),
    "all codes used, evenly": (12, 12, 12, 12, 12, 12, 12, 12),
}
_SIZE = (4.0, 2.4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    spread: float = 0.36  # radius of the features around a code
    jitter: float = 0.22  # of the codes about a regular grid
    seed: int = 6


FULL = Settings()
QUICK = FULL


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {case: partial(_cell, settings, case) for case in CASES}
    return measure("figure11", out, settings, cells, _conclude, partial(_draw, settings))


def _points(settings: Settings, case: str) -> tuple[Tensor, Tensor]:  # features [N, 2], codes [8, 2]
    generator = torch.Generator().manual_seed(settings.seed)
    grid = torch.cartesian_prod(torch.arange(4) + 0.5, 1.2 * (torch.arange(2) + 0.5))
    e = grid + settings.jitter * (2 * torch.rand(8, 2, generator=generator) - 1)
    features = []
    for code, number in zip(e[torch.randperm(8, generator=generator)], CASES[case], strict=True):
        # A sunflower: evenly over a disk, each point turned by the golden angle from the one before.
        n = torch.arange(number)
        radius, angle = settings.spread * ((n + 0.5) / max(number, 24)).sqrt(), n * math.pi * (3 - math.sqrt(5))
        features.append(code + radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1))
    return torch.cat(features), e


def _cell(settings: Settings, case: str) -> dict[str, Any]:
    z, e = _points(settings, case)
    counts = torch.bincount(nearest_code(z, e)[1], minlength=len(e))
    return {"counts": counts.tolist(), "U": float(utilization(counts)), "C": float(perplexity(counts))}


def _conclude(results: Results) -> Conclusion:
    summary = [{"case": case, "U": cell["U"], "C": cell["C"]} for case, cell in results.items()]
    verdict = [
        f"{case}: U = {cell['U']:.0%}, C = {cell['C']:.2f} of {len(cell['counts'])}, features of a code "
        f"{min(cell['counts'])} to {max(cell['counts'])}."
        for case, cell in results.items()
    ]
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(2, len(CASES), size=(13.5, 6.4), title="U: are all codes used?  C: how evenly?")
    for column, (case, cell) in enumerate(results.items()):
        plane, bars = axes[column], axes[len(CASES) + column]
        draw_cells(plane, *_points(settings, case), size=_SIZE)
        plane.set_title(case, fontsize=11)
        K, total = len(cell["counts"]), sum(cell["counts"])
        p = sorted((count / total for count in cell["counts"]), reverse=True)
        bars.bar(range(1, K + 1), p, color=COLORS[0], width=0.7)
        bars.axhline(1 / K, color="black", linewidth=1, linestyle="--")
        bars.text(K + 0.45, 1 / K, "1 / K ", ha="right", va="bottom", fontsize=9)
        bars.set(ylim=(0, 0.85), xticks=range(1, K + 1), xlabel="codes, most used first")
        bars.set_title(f"U = {cell['U']:.0%}     C = {cell['C']:.2f} of {K}", fontsize=12, fontweight="bold")
    axes[len(CASES)].set_ylabel("p, share of the features")
    figure.legend(handles=handles(), loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    return figure
