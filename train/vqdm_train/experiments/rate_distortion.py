"""How wide should a codebook be? E, U and C of K codes from N(0, v I) for features from N(0, I) in d dimensions.

    matched          v = 1               the paper's match: the features' own law
    rate-distortion  v = 1 - K^(-2/d)    the reproduction law at log2 K bits (`rate_distortion_gaussian`)
    Theorem 2        v = (d + 2) / d     the optimal density f^(d/(d+2)) as K grows without bound, for a Gaussian f

Shannon's bound, d K^(-2/d), is the least E that any code of this rate can have, in blocks of any length. Codebooks
trained with the targets "features" and "rate_distortion" stand beside the drawn ones; their training is that of
figure5's code (0.1 c + 10 L_W, SGD at 3.0 with momentum 0.9), with fewer features and steps since no mean has to be
followed.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from vqdm_cuda import WassersteinQuantizer, criterion_triple
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, confidence, log_axis, measure, new_axes

__all__ = ["FULL", "QUICK", "WIDTHS", "Settings", "run", "width"]

WIDTHS = ("matched", "rate-distortion", "Theorem 2")
TARGETS = {"features": "matched", "rate_distortion": "rate-distortion"}  # of training, and the width each aims at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    dims: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    codebook_sizes: tuple[int, ...] = (400, 1024, 16384)
    num_features: int = 200_000
    repeats: int = 5  # independent draws of features and codes
    trained_dims: tuple[int, ...] = (16, 32)
    trained_codebook_size: int = 16384
    trained_features: int = 20_000  # fresh ones in every step
    trained_steps: int = 300
    lr: float = 3.0
    momentum: float = 0.9
    wasserstein_weight: float = 10.0
    fit_weight: float = 0.1  # of the squared distance summed over d
    seed: int = 0


FULL = Settings()
QUICK = Settings(
    dims=(2, 8, 32),
    codebook_sizes=(400, 1024),
    num_features=20_000,
    repeats=3,
    trained_codebook_size=1024,
    trained_features=4000,
    trained_steps=150,
    lr=0.75,  # 1/16 of the codes: figure5's lr would move each 16 times as far a step
)


def width(name: str, d: int, K: int) -> float:
    """v, the variance of the codes."""
    return {"matched": 1.0, "rate-distortion": 1 - K ** (-2 / d), "Theorem 2": (d + 2) / d}[name]


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {f"K {K}, d {d}": partial(_drawn, settings, K, d) for K in settings.codebook_sizes for d in settings.dims}
    cells |= {
        f"trained, d {d}, target {target}": partial(_trained, settings, d, target)
        for d in settings.trained_dims
        for target in TARGETS
    }
    return measure("rate-distortion", out, settings, cells, partial(_conclude, settings), partial(_draw, settings))


@torch.no_grad()
def _drawn(settings: Settings, K: int, d: int) -> dict[str, Any]:
    """Means and 95 % confidence intervals. In a repeat the widths scale the same draw: their differences are paired."""
    values: dict[str, dict[str, list[float]]] = {name: {x: [] for x in "EUC"} for name in WIDTHS}
    for repeat in range(settings.repeats):
        generator = torch.Generator().manual_seed(settings.seed + repeat)
        z = torch.randn(settings.num_features, d, generator=generator)
        e = torch.randn(K, d, generator=generator)
        for name in WIDTHS:
            for x, value in zip("EUC", criterion_triple(z, math.sqrt(width(name, d, K)) * e), strict=True):
                values[name][x].append(float(value))
    rows: dict[str, Any] = {
        name: {"v": width(name, d, K), **{x: confidence(values[name][x]) for x in "EUC"}} for name in WIDTHS
    }
    differences = {
        name: {
            x: confidence([a - b for a, b in zip(values[name][x], values["matched"][x], strict=True)]) for x in "EUC"
        }
        for name in WIDTHS[1:]
    }
    best = {x: _best({name: values[name][x] for name in WIDTHS}, smallest=x == "E") for x in "EUC"}
    return {"K": K, "d": d, "shannon": d * K ** (-2 / d), "widths": rows, "against_matched": differences, "best": best}


def _best(values: dict[str, list[float]], *, smallest: bool) -> str | None:
    """The width whose lead over each of the others is more than its 95 % confidence interval; None where none is."""
    sign = 1 if smallest else -1
    for name, own in values.items():
        leads = [
            confidence([sign * (b - a) for a, b in zip(own, other, strict=True)])
            for rival, other in values.items()
            if rival != name
        ]
        if all(lead > interval for lead, interval in leads):
            return name
    return None


def _trained(settings: Settings, d: int, target: str) -> dict[str, Any]:
    """One codebook from N(0, I), trained; the same start and features for both targets."""
    K = settings.trained_codebook_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        quantizer = WassersteinQuantizer(
            K,
            d,
            init_std=1.0,
            codebook_weight=settings.fit_weight * d,  # ours is the mean over the d numbers
            wasserstein_weight=settings.wasserstein_weight,
            target=target,
        )
    generator = torch.Generator().manual_seed(settings.seed + 1)
    optimizer = torch.optim.SGD(quantizer.codebook_parameters(), lr=settings.lr, momentum=settings.momentum)
    for _ in range(settings.trained_steps):
        loss = quantizer(torch.randn(settings.trained_features, d, generator=generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = torch.randn(settings.num_features, d, generator=torch.Generator().manual_seed(settings.seed + 2))
        E, U, C = (float(x) for x in criterion_triple(z, quantizer.codebook))
        v = float(quantizer.codebook.var(0, correction=0).mean())
    return {"K": K, "d": d, "target": target, "shannon": d * K ** (-2 / d), "v": v, "E": E, "U": U, "C": C}


def _conclude(settings: Settings, results: Results) -> Conclusion:
    drawn = [result for result in results.values() if "widths" in result]
    verdict = []
    for K in settings.codebook_sizes:
        for x in "EUC":
            found = []
            for name in (*WIDTHS, None):
                dims = [str(row["d"]) for row in drawn if row["K"] == K and row["best"][x] == name]
                if dims:
                    found.append(f"{name or 'no one width'} at d = {', '.join(dims)}")
            verdict.append(f"K = {K}, best {x}: {'; '.join(found)}.")
        worse = [
            str(row["d"])
            for row in drawn
            if row["K"] == K and sum(row["against_matched"]["Theorem 2"]["C"]) < 0  # mean + interval
        ]
        verdict.append(f"K = {K}, C of Theorem 2's width below the matched one's at d = {', '.join(worse) or 'none'}.")
    all_three = [f"d = {row['d']}, K = {row['K']}" for row in drawn if set(row["best"].values()) == {"rate-distortion"}]
    verdict.append(f"Rate-distortion width best in E, U and C at once: {'; '.join(all_three) or 'nowhere'}.")
    for d in settings.trained_dims:
        ours, theirs = (results[f"trained, d {d}, target {target}"] for target in ("rate_distortion", "features"))
        at_once = ours["E"] < theirs["E"] and ours["U"] > theirs["U"] and ours["C"] > theirs["C"]
        verdict.append(
            f"Trained, d = {d}, K = {ours['K']}: E {theirs['E']:.4g} to {ours['E']:.4g}, U {theirs['U']:.2%} to "
            f"{ours['U']:.2%}, C {theirs['C']:.0f} to {ours['C']:.0f} with the rate-distortion target in place of the "
            f"features' own law: {'all three better' if at_once else 'not all three better'}."
        )
    summary = [
        {"K": row["K"], "d": row["d"], "shannon": row["shannon"]}
        | {name: [row["widths"][name][x][0] for x in "EUC"] for name in WIDTHS}
        for row in drawn
    ]
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    sizes = settings.codebook_sizes
    figure, axes = new_axes(
        len(sizes), 3, size=(12, 0.8 + 2.9 * len(sizes)), title="Features from N(0, I), codes from N(0, v I)"
    )
    labels = {"E": "E / Shannon bound", "U": "U, codes used [%]", "C": "C / K [%]"}
    for row, K in enumerate(sizes):
        cells = [result for result in results.values() if "widths" in result and result["K"] == K]
        dims = [cell["d"] for cell in cells]
        for column, (x, label) in enumerate(labels.items()):
            ax = axes[3 * row + column]
            for name, color in zip(WIDTHS, COLORS, strict=False):
                scales = [_scale(x, K, cell["shannon"]) for cell in cells]
                pairs = [cell["widths"][name][x] for cell in cells]
                ax.errorbar(
                    dims,
                    [scale * mean for scale, (mean, _) in zip(scales, pairs, strict=True)],
                    yerr=[scale * interval for scale, (_, interval) in zip(scales, pairs, strict=True)],
                    color=color,
                    marker="o",
                    markersize=4,
                    capsize=3,
                    label=f"drawn, {name}",
                )
            for (target, name), marker in zip(TARGETS.items(), ("P", "*"), strict=True):
                color = COLORS[WIDTHS.index(name)]
                trained = [r for r in results.values() if r.get("target") == target and r["K"] == K]
                if trained:
                    ax.plot(
                        [r["d"] for r in trained],
                        [_scale(x, K, r["shannon"]) * r[x] for r in trained],
                        linestyle="none",
                        marker=marker,
                        markersize=11,
                        markerfacecolor="white",
                        color=color,
                        label=f"trained, target {target}",
                    )
            if x == "E":
                ax.axhline(1, color="black", linewidth=1, linestyle="--", label="Shannon bound, d K^(-2/d)")
                log_axis(ax)
            ax.set_xscale("log", base=2)
            ax.set_xticks(dims, [str(d) for d in dims])
            ax.set_ylabel(label)
            ax.set_title(f"K = {K}", fontsize=10)
            if row == len(sizes) - 1:
                ax.set_xlabel("d, dimensions")
    most = max(axes[::3], key=lambda ax: len(ax.get_legend_handles_labels()[0]))
    figure.legend(*most.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _scale(x: str, K: int, shannon: float) -> float:
    return {"E": 1 / shannon, "U": 100.0, "C": 100 / K}[x]
