"""Figure 6 of the OptVQ paper: where codes go in two dimensions when they follow their features.

Features are data and stay where they are. In each step every feature is assigned a code, by `nearest` or `transport`,
and each code takes a step of gradient descent on mean ||z_i - e_r(i)||^2:

    e_k <- e_k + rate (K / N) sum over i with r(i) = k of (z_i - e_k)

so that a code with its fair share of the features, N / K, goes the fraction `rate` of the way to their mean; a code
without features has no gradient and stays. E and U are those of the nearest code for both methods: that is how tokens
are made after training. Beside them stands what nearest training reaches from the best start there is, codes that begin
on features.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Generator, Tensor

from vqdm_cuda import code_sums, criterion_triple
from vqdm_train.experiments.common import Conclusion, Files, Results, log_axis, measure, new_axes
from vqdm_train.experiments.optvq_methods import LOOKS, METHODS, assign, handle, scatter

__all__ = ["CASES", "FULL", "QUICK", "Settings", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    num_features: int = 600
    codebook_size: int = 24
    steps: int = 600
    rate: float = 0.05
    repeats: int = 10  # draws of features and codes; the trajectories are the first's
    cases: tuple[str, ...] = ("codes beside the data", "codes inside the data", "clusters", "ring")
    eps: float = 0.1
    num_iters: int = 5
    seed: int = 1


FULL = Settings()
QUICK = Settings(steps=100, rate=0.08, repeats=1)


def _gaussian(count: int, mean: tuple[float, float], std: float, generator: Generator) -> Tensor:  # [count, 2]
    return torch.tensor(mean) + std * torch.randn(count, 2, generator=generator)


def _clusters(count: int, generator: Generator) -> Tensor:  # [count, 2]
    angles = 2 * math.pi / 5 * (torch.arange(count) % 5) + 0.3
    centres = 2.2 * torch.stack([angles.cos(), angles.sin()], 1)
    return centres + 0.35 * torch.randn(count, 2, generator=generator)


def _ring(count: int, generator: Generator) -> Tensor:  # [count, 2]
    angles = 2 * math.pi * torch.rand(count, generator=generator)
    radius = 2 + 0.18 * torch.randn(count, generator=generator)
    return radius[:, None] * torch.stack([angles.cos(), angles.sin()], 1)


# Features of a count and codes of a count: [N, 2] and [K, 2].
CASES: dict[str, tuple[Callable[[int, Generator], Tensor], Callable[[int, Generator], Tensor]]] = {
    "codes beside the data": (
        lambda n, g: _gaussian(n, (1.8, 0.6), 0.8, g),
        lambda n, g: _gaussian(n, (-2.2, -0.8), 0.5, g),
    ),
    "codes inside the data": (
        lambda n, g: _gaussian(n, (0, 0), 1.3, g),
        lambda n, g: _gaussian(n, (0, 0), 0.15, g),
    ),
    "clusters": (_clusters, lambda n, g: _gaussian(n, (-2.1, 1.4), 0.4, g)),
    "ring": (_ring, lambda n, g: _gaussian(n, (0, 0), 0.4, g)),
}


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {
        _key(case, method): partial(_train, settings, case, method) for case in settings.cases for method in METHODS
    }
    cells |= {_key(case, "from features"): partial(_from_features, settings, case) for case in settings.cases}
    return measure("optvq-dynamics", out, settings, cells, partial(_conclude, settings), partial(_draw, settings))


def _key(case: str, method: str) -> str:
    return f"{case}, {method}"


def _start(settings: Settings, case: str, repeat: int) -> tuple[Tensor, Tensor]:  # [N, 2], [K, 2]
    generator = Generator().manual_seed(settings.seed + repeat)
    draw_features, draw_codes = CASES[case]
    return draw_features(settings.num_features, generator), draw_codes(settings.codebook_size, generator)


def _train(settings: Settings, case: str, method: str) -> dict[str, Any]:
    """All repeats; both methods have the same features and the same codes at the start."""
    runs = []
    for repeat in range(settings.repeats):
        z, e = _start(settings, case, repeat)
        runs.append(_descend(settings, method, z, e))
    last = [run["curve"] for run in runs]
    mean = {name: sum(curve[name][-1] for curve in last) / len(last) for name in "EU"}
    worst = {"E_most": max(curve["E"][-1] for curve in last), "U_least": min(curve["U"][-1] for curve in last)}
    return {"case": case, "method": method, **mean, **worst, **runs[0]}


def _from_features(settings: Settings, case: str) -> dict[str, Any]:
    """Nearest training of codes that start on features, the same features as those of the others."""
    errors = []
    for repeat in range(settings.repeats):
        z, _ = _start(settings, case, repeat)
        generator = Generator().manual_seed(settings.seed + repeat)
        e = z[torch.randperm(len(z), generator=generator)[: settings.codebook_size]]
        errors.append(_descend(settings, "nearest", z, e)["curve"]["E"])
    return {"case": case, "E": sum(error[-1] for error in errors) / len(errors), "E_first": errors[0][-1]}


def _descend(
    settings: Settings,
    method: str,
    z: Tensor,  # [N, 2]
    e: Tensor,  # [K, 2]
) -> dict[str, Any]:
    """The codes, E and U at steps that lie closer at the start, where codes move most."""
    told = {round(settings.steps * (i / 24) ** 2) for i in range(25)}
    codes: list[list[list[float]]] = []
    curve: dict[str, list[float]] = {"step": [], "E": [], "U": []}
    for step in range(settings.steps + 1):
        if step in told:
            codes.append([[round(x, 3) for x in row] for row in e.tolist()])
            E, U, _ = criterion_triple(z, e)
            for name, value in (("step", step), ("E", float(E)), ("U", float(U))):
                curve[name].append(float(f"{value:.5g}"))
        indices = assign(method, z, e, eps=settings.eps, num_iters=settings.num_iters)
        sums, counts = code_sums(z, indices, len(e))
        e = e + settings.rate * len(e) / len(z) * (sums - counts[:, None] * e)
    return {"curve": curve, "codes": codes}


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict = [], []
    for case in settings.cases:
        nearest, transport = (results[_key(case, method)] for method in METHODS)
        best = results[_key(case, "from features")]
        summary.append(
            {"case": case, "from_features": {"E": best["E"]}}
            | {
                cell["method"]: {name: cell[name] for name in ("E", "U", "E_most", "U_least")}
                for cell in (nearest, transport)
            }
        )
        verdict.append(
            f"{case}: nearest training ends with {nearest['U']:.1%} of the codes used and E {nearest['E']:.3g}, "
            f"transport training with {transport['U']:.1%} and E {transport['E']:.3g}; nearest training of codes that "
            f"start on features has E {best['E']:.3g}."
        )
    least = min(results[_key(case, "transport")]["U_least"] for case in settings.cases)
    verdict.append(f"Means of {settings.repeats} draws; in the worst of them transport training uses {least:.1%}.")
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    columns = len(settings.cases)
    figure, axes = new_axes(
        3,
        columns,
        size=(3.5 * columns, 9.6),
        title=f"{settings.codebook_size} codes follow {settings.num_features} features: "
        f"where nearest and transport training take them",
    )
    for column, case in enumerate(settings.cases):
        for row, method in enumerate(METHODS):
            ax = axes[columns * row + column]
            _draw_trajectories(ax, _start(settings, case, 0)[0], results[_key(case, method)])
            cell = results[_key(case, method)]
            used, E = cell["curve"]["U"][-1] * settings.codebook_size, cell["curve"]["E"][-1]
            head = f"{case}\n" if row == 0 else ""
            ax.set_title(f"{head}{method}: {used:.0f} of {settings.codebook_size} codes used, E {E:.3g}", fontsize=9.5)
        ax = axes[2 * columns + column]
        for method in METHODS:
            curve, look = results[_key(case, method)]["curve"], LOOKS[method]
            ax.plot(curve["step"], curve["E"], look.line, color=look.color, linewidth=1.8)
        ax.axhline(results[_key(case, "from features")]["E_first"], color="black", linewidth=1, linestyle=":")
        log_axis(ax)
        ax.set_xlabel("step")
        ax.set_ylabel("E, quantization error")
    handles = [
        Line2D([], [], color="#9ca3af", marker=".", linestyle="none", label="feature"),
        Line2D([], [], color="#374151", marker="o", markerfacecolor="white", linestyle="none", label="code, start"),
        *(handle(method, f"{method}, way and end") for method in METHODS),
        Line2D([], [], color="#374151", marker="x", linestyle="none", label="end of a code no feature takes"),
        Line2D([], [], color="black", linestyle=":", linewidth=1, label="nearest, codes that start on features"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure


def _draw_trajectories(
    ax: Axes,
    z: Tensor,  # [N, 2]
    cell: dict[str, Any],
) -> None:
    look, ways = LOOKS[cell["method"]], torch.tensor(cell["codes"])  # [T, K, 2]
    scatter(ax, z, s=5, color="#9ca3af", alpha=0.5, linewidths=0, zorder=1)
    for way in ways.unbind(1):
        x, y = way.numpy().T
        ax.plot(x, y, color=look.color, linewidth=0.9, alpha=0.75, zorder=2)
    start, end = ways[0], ways[-1]
    used = torch.bincount(assign("nearest", z, end), minlength=len(end)) > 0
    scatter(ax, start, s=13, facecolors="white", edgecolors="#374151", linewidths=0.8, zorder=3)
    scatter(ax, end[used], s=34, marker=look.marker, color=look.color, edgecolors="white", linewidths=0.6, zorder=5)
    scatter(ax, end[~used], s=16, marker="x", color="#374151", linewidths=0.9, zorder=4)
    ax.set(xlim=(-4.0, 4.4), ylim=(-3.7, 3.7), aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
