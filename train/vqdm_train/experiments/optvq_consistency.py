"""Figure 7 of the OptVQ paper: when transport and nearest code agree, as the codes move away from the features.

N features from N(0, I), K codes of one of three kinds, all of them moved by the same number in every coordinate:

    drawn      codes from N(0, I), independent of the features
    trained    centroids of the features by Lloyd's iterations, as a good codebook has them
    copied     the features themselves, K = N

The move is in standard deviations of the features. A copied code is its feature's partner however far all are moved:
moving by one vector is an optimal transport of the features to the codes.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Generator, Tensor

from vqdm_cuda import code_sums
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.optvq_methods import LOOKS, METHODS, assign, handle, scatter

__all__ = ["FULL", "KINDS", "QUICK", "Settings", "run"]

KINDS = ("drawn", "trained", "copied")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    num_features: int = 4096
    codebook_size: int = 256  # of drawn and trained codes
    num_copied: int = 512  # features and codes
    dims: tuple[int, ...] = (2, 8, 64)
    moves: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
    repeats: int = 5
    lloyd_iters: int = 30
    eps: float = 0.1
    num_iters: int = 5
    shown: int = 24  # features and codes of the drawings
    shown_moves: tuple[float, ...] = (0.0, 0.5, 1.5, 3.0)
    seed: int = 3


FULL = Settings()
QUICK = Settings(num_features=1024, codebook_size=64, num_copied=128, moves=(0.0, 0.25, 1.0, 2.0, 4.0), repeats=2)


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {_key(kind, d): partial(_compare, settings, kind, d) for kind in KINDS for d in settings.dims}
    return measure("optvq-consistency", out, settings, cells, partial(_conclude, settings), partial(_draw, settings))


def _key(kind: str, d: int) -> str:
    return f"{kind} codes, d {d}"


def _compare(settings: Settings, kind: str, d: int) -> dict[str, Any]:
    """Means over the repeats, by move: the same features and codes at every one of them."""
    rows: list[list[list[float]]] = []
    for repeat in range(settings.repeats):
        generator = Generator().manual_seed(settings.seed + repeat)
        N = settings.num_copied if kind == "copied" else settings.num_features
        z = torch.randn(N, d, generator=generator)
        e = _codes(settings, kind, z, generator)
        rows.append([_measures(settings, z, e + move, copied=kind == "copied") for move in settings.moves])
    means = torch.tensor(rows, dtype=torch.float64).mean(0)  # [moves, measures]
    names = ("equal", *(f"{what} {method}" for what in ("used", "partner") for method in METHODS))
    told = {name: [round(x, 5) for x in column.tolist()] for name, column in zip(names, means.T, strict=True)}
    if kind != "copied":
        told = {name: column for name, column in told.items() if not name.startswith("partner")}
    return {"kind": kind, "d": d, "move": list(settings.moves), **told}


def _codes(
    settings: Settings,
    kind: str,
    z: Tensor,  # [N, d]
    generator: Generator,
) -> Tensor:  # [K, d]
    if kind == "copied":
        return z
    if kind == "drawn":
        return torch.randn(settings.codebook_size, z.shape[1], generator=generator)
    e = z[torch.randperm(len(z), generator=generator)[: settings.codebook_size]]
    for _ in range(settings.lloyd_iters):
        sums, counts = code_sums(z, assign("nearest", z, e), len(e))
        e = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), e)
    return e


def _measures(
    settings: Settings,
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    *,
    copied: bool,
) -> list[float]:
    """Share of equal assignments; of codes used, and of features with their partner, by either method."""
    nearest, transport = (assign(method, z, e, eps=settings.eps, num_iters=settings.num_iters) for method in METHODS)
    own = torch.arange(len(z)) if copied else torch.full((len(z),), -1)
    return [
        _share(nearest == transport),
        *(indices.unique().numel() / len(e) for indices in (nearest, transport)),
        *(_share(indices == own) for indices in (nearest, transport)),
    ]


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _conclude(settings: Settings, results: Results) -> Conclusion:
    verdict = []
    for kind in KINDS:
        cells = [results[_key(kind, d)] for d in settings.dims]
        equal = [f"{cell['equal'][0]:.1%} and {cell['equal'][-1]:.1%} (d = {cell['d']})" for cell in cells]
        verdict.append(
            f"{kind} codes: transport and nearest agree on {', '.join(equal)} of the features where codes are not "
            f"moved and {settings.moves[-1]:g} standard deviations away."
        )
    for kind in KINDS[1:]:
        told = []
        for cell in (results[_key(kind, d)] for d in settings.dims):
            told.append(f"{cell['used nearest'][-1]:.1%} and {cell['used transport'][-1]:.1%} (d = {cell['d']})")
        verdict.append(
            f"{kind} codes, {settings.moves[-1]:g} standard deviations away: nearest and transport use "
            f"{', '.join(told)}."
        )
    told = []
    for cell in (results[_key("copied", d)] for d in settings.dims):
        told.append(f"{cell['partner nearest'][-1]:.1%} and {cell['partner transport'][-1]:.1%} (d = {cell['d']})")
    verdict.append(f"copied codes there: nearest and transport find the partner of {', '.join(told)} of the features.")
    summary = [{name: cell[name] for name in ("kind", "d", "move", "equal")} for cell in results.values()]
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    moves = settings.shown_moves
    figure, axes = new_axes(
        3,
        len(moves),
        size=(3.5 * len(moves), 10.0),
        title="Transport and nearest code, as the codes move away from the features",
    )
    generator = Generator().manual_seed(settings.seed)
    z = 0.6 * torch.randn(settings.shown, 2, generator=generator)
    e = z + 0.08 * torch.randn(settings.shown, 2, generator=generator)
    for column, move in enumerate(moves):
        moved = e + 0.6 * move
        nearest = assign("nearest", z, moved)
        for row, method in enumerate(METHODS):
            ax = axes[len(moves) * row + column]
            indices = assign(method, z, moved, eps=settings.eps, num_iters=settings.num_iters)
            _draw_matching(ax, z, moved, indices, method)
            told = f"{indices.unique().numel()} of {len(e)} codes"
            if method == "transport":
                told += f", {int((indices == nearest).sum())} as nearest"
            ax.set_title((f"moved by {move:g}\n" if row == 0 else "") + f"{method}: {told}", fontsize=9.5)
    curves = axes[2 * len(moves) :]
    _draw_curves(settings, results, curves)
    handles = [
        Line2D([], [], color="#6b7280", marker=".", linestyle="none", label="feature"),
        *(handle(method, f"{method}: code and its features") for method in METHODS),
        Line2D([], [], color="#6b7280", marker="o", markerfacecolor="white", linestyle="none", label="code not used"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _draw_curves(settings: Settings, results: Results, axes: list[Axes]) -> None:
    d = settings.dims[len(settings.dims) // 2]
    equal_by_kind, equal_by_d, used, partner = axes[:4]
    for kind, color, marker in zip(KINDS, COLORS, "o^D", strict=False):
        cell = results[_key(kind, d)]
        equal_by_kind.plot(cell["move"], _percent(cell["equal"]), color=color, marker=marker, markersize=4, label=kind)
    for dim, color, marker in zip(settings.dims, (COLORS[3], COLORS[0], COLORS[4]), "v^s", strict=False):
        cell = results[_key("trained", dim)]
        label = f"d = {dim}"
        equal_by_d.plot(cell["move"], _percent(cell["equal"]), color=color, marker=marker, markersize=4, label=label)
    for method, look in LOOKS.items():
        for ax, kind, what in ((used, "trained", "used"), (partner, "copied", "partner")):
            cell = results[_key(kind, d)]
            ax.plot(
                cell["move"],
                _percent(cell[f"{what} {method}"]),
                look.line,
                color=look.color,
                marker=look.marker,
                markersize=4,
                label=method,
            )
    titles = {
        equal_by_kind: f"equal assignments, d = {d} [%]",
        equal_by_d: "equal assignments, trained codes [%]",
        used: f"codes used, trained codes, d = {d} [%]",
        partner: f"partners found, copied codes, d = {d} [%]",
    }
    for ax, title in titles.items():
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(-3, 103), xlabel="codes moved by, in every coordinate [std]")
        ax.legend(fontsize=8, frameon=False)


def _percent(values: list[float]) -> list[float]:
    return [100 * value for value in values]


def _draw_matching(
    ax: Axes,
    z: Tensor,  # [N, 2]
    e: Tensor,  # [K, 2]
    indices: Tensor,  # [N]
    method: str,
) -> None:
    look = LOOKS[method]
    for i, k in enumerate(indices.tolist()):
        x, y = torch.stack([z[i], e[k]], 1).numpy()
        ax.plot(x, y, look.line, color=look.color, linewidth=1, alpha=0.8, zorder=1)
    used = torch.bincount(indices, minlength=len(e)) > 0
    scatter(ax, z, s=10, color="#6b7280", zorder=3)
    scatter(ax, e[~used], s=22, facecolors="white", edgecolors="#6b7280", linewidths=0.8, zorder=2)
    scatter(ax, e[used], s=34, marker=look.marker, color=look.color, edgecolors="white", linewidths=0.6, zorder=4)
    middle, half = (z.mean(0) + e.mean(0)) / 2, 1.5 + 0.55 * math.dist(z.mean(0).tolist(), e.mean(0).tolist())
    ax.set(
        xlim=(float(middle[0]) - half, float(middle[0]) + half),
        ylim=(float(middle[1]) - half, float(middle[1]) + half),
        aspect="equal",
        xticks=[],
        yticks=[],
    )
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
