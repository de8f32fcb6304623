"""Figure 12 of the Wasserstein VQ paper, a drawing: a k-means step moves only the codes that features select.

Nine features and four codes, as in the paper. Every feature takes its nearest code, and `EMAQuantizer` moves each code
towards the mean of its features. The fourth code is nearest to none: it is not moved, and stays unused.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from vqdm_cuda import EMAQuantizer, criterion_triple
from vqdm_train.experiments.common import Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.plane import draw_cells, handles

__all__ = ["CODES", "FEATURES", "FULL", "QUICK", "Settings", "run"]

FEATURES = ((0.5, 2.2), (0.9, 2.6), (1.25, 2.15), (0.45, 0.75), (1.0, 0.5), (1.2, 1.0), (2.15, 1.3), (2.55, 1.75),
            (2.3, 2.2))  # fmt: skip
CODES = ((1.35, 2.65), (1.45, 0.35), (1.9, 1.65), (3.55, 0.6))
_SIZE = (4.0, 3.0)
_LABELS_AT = ((-4, -21), (-20, -17), (-20, 6), (9, -4))  # beside the codes, in points: clear of features and arrows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    decay: float = 0.8
    steps: tuple[int, ...] = (0, 1, 20)  # that are drawn
    seed: int = 0  # nothing is drawn at random


FULL = Settings()
QUICK = FULL


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {f"{step} steps": partial(_cell, settings, step) for step in settings.steps}
    return measure("figure12", out, settings, cells, _conclude, _draw)


def _cell(settings: Settings, steps: int) -> dict[str, Any]:
    """The codes after so many steps, and which of them each feature then takes."""
    z, start = torch.tensor(FEATURES), torch.tensor(CODES)
    with torch.random.fork_rng(devices=[]):
        quantizer = EMAQuantizer(len(CODES), 2, decay=settings.decay)
    quantizer.set_codes(start)
    for _ in range(steps):
        quantizer(z)
    e = quantizer.codebook
    E, U, C = (float(x) for x in criterion_triple(z, e))
    return {
        "steps": steps,
        "codes": e.tolist(),
        "moved": (e - start).norm(dim=1).tolist(),
        "indices": quantizer.encode(z).tolist(),
        **{"E": E, "U": U, "C": C},
    }


def _conclude(results: Results) -> Conclusion:
    summary, verdict = [], []
    for cell in results.values():
        features = [cell["indices"].count(k) for k in range(len(CODES))]
        summary.append({"steps": cell["steps"], "features": features, **{x: cell[x] for x in ("moved", *"EUC")}})
        told = [
            f"e_{k} has {number} features and has moved by {moved:.3f}"
            for k, (number, moved) in enumerate(zip(features, cell["moved"], strict=True), 1)
        ]
        verdict.append(f"After {cell['steps']} steps: {', '.join(told)}; E = {cell['E']:.3f}, U = {cell['U']:.0%}.")
    return Conclusion(summary, verdict)


def _draw(results: Results) -> Figure:
    figure, axes = new_axes(
        1, len(results), size=(5.0 * len(results), 4.8), title="k-means moves only the codes that features select"
    )
    z, start = torch.tensor(FEATURES), torch.tensor(CODES)
    for ax, cell in zip(axes, results.values(), strict=True):
        e = torch.tensor(cell["codes"])
        draw_cells(ax, z, e, size=_SIZE, feature_size=7)
        for feature, k in zip(FEATURES, cell["indices"], strict=True):
            ax.plot(*_between(torch.tensor(feature), e[k]), color="#374151", linewidth=0.9, linestyle=":")
        for k, (code, moved) in enumerate(zip(e, cell["moved"], strict=True)):
            label = ax.annotate(f"$e_{k + 1}$", code.tolist(), _LABELS_AT[k], textcoords="offset points", fontsize=13)
            label.set_path_effects([withStroke(linewidth=3, foreground="white")])
            if moved > 0.1:
                arrow = {"arrowstyle": "->", "color": "black", "lw": 1.6}
                ax.annotate("", code.tolist(), tuple(start[k].tolist()), arrowprops=arrow)
        ax.set_title(_title(cell), fontsize=10.5)
    figure.legend(handles=handles(), loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    return figure


def _title(cell: dict[str, Any]) -> str:
    if not cell["steps"]:
        what = "each feature takes its nearest code"
    else:
        moved = ", ".join(f"$e_{k}$ {by:.3f}" for k, by in enumerate(cell["moved"], 1))
        what = f"after {cell['steps']} step{'s' if cell['steps'] > 1 else ''}; moved: {moved}"
    return f"{what}\nE = {cell['E']:.3f}, U = {cell['U']:.0%}, C = {cell['C']:.2f}"


def _between(a: Tensor, b: Tensor) -> tuple[list[float], list[float]]:
    return [float(a[0]), float(b[0])], [float(a[1]), float(b[1])]
