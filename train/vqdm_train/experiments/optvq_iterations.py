"""Figure 9 of the OptVQ paper: what each iteration of Sinkhorn still changes.

Two recursions over the same costs, after 1, 2, 3, ... iterations:

    published   OptVQ's, linear, with 1e-8 added to every sum, evaluated in float64
    exact       ours: the log domain without a floor

    change      half the sum of |plan - plan one iteration earlier|: the mass that moved
    marginal    half the sum of |column of the plan - 1 / K|: how unequally the codes are used (rows are exact)
    changed     share of features whose code is not that of one iteration earlier
    converged   share of features that have the code they have after many exact iterations
    used        share of the codes that are some feature's
    floored     share of features for which sinkhorn(floor=1e-8, stats="local") has the code of the published recursion

The plan's pictures are of features all round a circle and codes on one side of it, both in order.
"""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Generator, Tensor

from vqdm_cuda import sinkhorn
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.optvq_methods import costs, published_plans

__all__ = ["FULL", "QUICK", "RECURSIONS", "Settings", "run"]

RECURSIONS = ("published", "exact")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    num_features: int = 2048
    codebook_size: int = 1024
    code_dim: int = 64
    moves: tuple[float, ...] = (0.0, 2.0)  # of the codes, in every coordinate
    num_iters: int = 20
    many_iters: int = 500
    eps: float = 0.1
    shown_features: int = 96
    shown_codes: int = 48
    shown_iters: tuple[int, ...] = (0, 1, 2, 5, 20)
    seed: int = 6


FULL = Settings()
QUICK = Settings(num_features=512, codebook_size=256, many_iters=100)


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {
        _key(move, recursion): partial(_iterate, settings, move, recursion)
        for move in settings.moves
        for recursion in RECURSIONS
    }
    return measure("optvq-iterations", out, settings, cells, partial(_conclude, settings), partial(_draw, settings))


def _key(move: float, recursion: str) -> str:
    return f"{recursion}, codes moved by {move:g}"


def _points(settings: Settings, move: float) -> tuple[Tensor, Tensor]:  # [N, d], [K, d]
    generator = Generator().manual_seed(settings.seed)
    z = torch.randn(settings.num_features, settings.code_dim, generator=generator, dtype=torch.float64)
    e = torch.randn(settings.codebook_size, settings.code_dim, generator=generator, dtype=torch.float64)
    return z, e + move


def _plans(
    settings: Settings,
    recursion: str,
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
) -> Iterator[tuple[Tensor, Tensor]]:  # plan [N, K] and indices [N] after 0, 1, ... iterations
    scores = -costs(z, e) / settings.eps
    if recursion == "published":
        for plan in published_plans(scores, settings.num_iters):
            yield plan, plan.argmax(1)
        return
    for t in range(settings.num_iters + 1):
        f, g, indices = sinkhorn(z, e, eps=settings.eps, num_iters=t)
        plan = ((f[:, None] + g) / settings.eps + scores).exp()
        yield plan / plan.sum(), indices  # scores are shifted by their minimum, which f and g know nothing of


def _iterate(settings: Settings, move: float, recursion: str) -> dict[str, Any]:
    z, e = _points(settings, move)
    N, K = len(z), len(e)
    converged = sinkhorn(z, e, eps=settings.eps, num_iters=settings.many_iters)[2]
    told: dict[str, list[float]] = {
        name: [] for name in ("change", "marginal", "changed", "converged", "used", "floored")
    }
    before: tuple[Tensor, Tensor] | None = None
    for t, (plan, indices) in enumerate(_plans(settings, recursion, z, e)):
        if before is not None:
            values = {
                "change": float((plan - before[0]).abs().sum()) / 2,
                "marginal": float((plan.sum(0) - 1 / K).abs().sum()) / 2,
                "changed": _share(indices != before[1]),
                "converged": _share(indices == converged),
                "used": indices.unique().numel() / K,
            }
            if recursion == "published":
                ours = sinkhorn(z, e, eps=settings.eps, num_iters=t, floor=1e-8, stats="local")[2]
                values["floored"] = _share(indices == ours)
            for name, value in values.items():
                told[name].append(float(f"{value:.4g}"))
        before = plan, indices
    return {"move": move, "recursion": recursion, "N": N, "K": K, **{name: x for name, x in told.items() if x}}


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict = [], []
    for cell in results.values():
        at = {
            t: {name: cell[name][t - 1] for name in cell if isinstance(cell[name], list)}
            for t in (1, 5, settings.num_iters)
        }
        summary.append({"recursion": cell["recursion"], "move": cell["move"], "after": at})
        verdict.append(
            f"{cell['recursion']}, codes moved by {cell['move']:g}: the fifth iteration moves {at[5]['change']:.2%} of "
            f"the mass and changes {at[5]['changed']:.2%} of the assignments; the marginal error is then "
            f"{at[5]['marginal']:.2%}, {at[5]['converged']:.1%} of the features have the code of exact convergence and "
            f"{at[5]['used']:.1%} of the codes are used."
        )
    equal = min(min(cell["floored"]) for cell in results.values() if "floored" in cell)
    verdict.append(
        f"sinkhorn with floor=1e-8 has at least {equal:.2%} of the published recursion's codes after every iteration."
    )
    return Conclusion(summary, verdict)


def _on_circle(angles: Tensor) -> Tensor:  # [N] -> [N, 2], in order
    angles = angles.sort()[0]
    return torch.stack([angles.cos(), angles.sin()], 1)


def _draw(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(
        2,
        5,
        size=(15.5, 6.8),
        title=f"What each iteration of Sinkhorn still changes (curves: {settings.num_features} features, "
        f"{settings.codebook_size} codes, d = {settings.code_dim})",
    )
    generator = Generator().manual_seed(settings.seed)
    z = _on_circle(2 * math.pi * torch.rand(settings.shown_features, generator=generator, dtype=torch.float64))
    e = _on_circle(math.pi + 0.6 * torch.randn(settings.shown_codes, generator=generator, dtype=torch.float64))
    plans = list(published_plans(-costs(z, e) / settings.eps, max(settings.shown_iters)))
    for ax, t in zip(axes, settings.shown_iters, strict=False):
        shares = (plans[t] * len(z)).clamp_min(1e-6)
        image = ax.imshow(shares.T.numpy(), origin="lower", aspect="auto", cmap="magma", norm=LogNorm(1e-4, 1))
        ax.set_title(f"plan after {t} iterations" if t != 1 else "plan after 1 iteration", fontsize=10)
        ax.set(xticks=[], yticks=[], xlabel="features, in order", ylabel="codes, in order" if t == 0 else "")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes[:5], label="share of the feature", shrink=0.9, pad=0.01)
    titles = {
        "change": "mass moved by the iteration [%]",
        "marginal": "marginal error of the codes [%]",
        "changed": "assignments changed by it [%]",
        "converged": "assignments as at convergence [%]",
        "used": "codes used [%]",
    }
    for ax, (name, title) in zip(axes[5:], titles.items(), strict=True):
        for cell in results.values():
            published = cell["recursion"] == "published"
            ax.plot(
                range(1, len(cell[name]) + 1),
                [100 * value for value in cell[name]],
                "--" if published else "-",
                marker="D" if published else "o",
                markerfacecolor="white" if published else None,
                markersize=5 if published else 3,
                color=COLORS[settings.moves.index(cell["move"])],
                label=f"{cell['recursion']}, moved by {cell['move']:g}",
            )
        ax.axvline(5, color="black", linewidth=1, linestyle=":")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("iterations")
        if name in ("converged", "used"):
            ax.set_ylim(-3, 103)
        elif name == "changed":
            ax.set_yscale("symlog", linthresh=0.1)  # 0 happens
            ax.set_ylim(bottom=-0.01)
        else:
            ax.set_yscale("log")
    handles, labels = axes[5].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure
