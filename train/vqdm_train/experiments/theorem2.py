"""Theorem 2 of the Wasserstein VQ paper, measured: optimal codes have a density proportional to f^(d/(d+2)).

Optimal codes. Lloyd's iterations. In one dimension they start at codes drawn from f, have the means of f itself, and
end where nothing moves; these densities have one optimum, so two starts will do. Elsewhere they are of features drawn
from f, and start at codes drawn from f^(1/4) and from f, since they end in an optimum near their start; that of the
smaller E is kept. What the theorem says is measured as it is written: the largest distance between the distribution
function of all coordinates of the codes and that of f^a (Kolmogorov and Smirnov's), at a = d/(d+2) and at a = 1, and
the a at which it is least. E K^(2/d) stands beside its limit where that is known.

Drawn codes. E of codes drawn from f^a over a, the same draw for every a, and the a of the least E: by a parabola
through the logarithms of E and a at the least and its two neighbours. E K^(2/d) stands beside its limit, too. The
features' own law is a = 1.
"""

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Generator, Tensor

from vqdm_cuda import code_sums, nearest_code, quantization_error
from vqdm_train.experiments.common import COLORS, Results, confidence
from vqdm_train.experiments.powers import LAWS, OPTIMAL_CONSTANT, Law, optimal_power, random_constant

__all__ = [
    "conclude",
    "draw_errors",
    "draw_powers",
    "drawn_key",
    "measure_drawn",
    "measure_optimal",
    "optimal_key",
    "powers_of",
]

_QUANTILES = 2**17
_STARTS = (0.25, 1.0)
_STILL = 1e-9  # no code moves further in an iteration
_FITTED = [0.01 * i for i in range(5, 200)]


def drawn_key(law: str, d: int) -> str:
    """Of the cell."""
    return f"Theorem 2, drawn codes, {law}, d {d}"


def optimal_key(law: str, d: int) -> str:
    """Of the cell."""
    return f"Theorem 2, optimal codes, {law}, d {d}"


def powers_of(d: int) -> list[float]:
    """The powers that codes are drawn from: about d/(d+2), a quarter of an octave apart, and 1."""
    return sorted({optimal_power(d) * 2 ** (i / 4) for i in range(-4, 7)} | {1.0})


def measure_drawn(
    law: str, d: int, *, codebook_sizes: tuple[int, ...], num_features: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Means and 95 % confidence intervals over independent draws."""
    powers = powers_of(d)
    rows = []
    for K in codebook_sizes:
        errors = []  # of each draw, by power
        for repeat in range(repeats):
            generator = Generator().manual_seed(seed + repeat)
            z = LAWS[law].inverse(_uniform(num_features, d, generator), 1.0).float()
            u = _uniform(K, d, generator)
            errors.append([float(quantization_error(z, LAWS[law].inverse(u, power).float())) for power in powers])
        at = {power: [own[i] for own in errors] for i, power in enumerate(powers)}
        best = at[optimal_power(d)]
        rows.append(
            {
                "K": K,
                "E": [confidence(at[power]) for power in powers],
                "over_optimal": [
                    confidence([E / own for E, own in zip(at[power], best, strict=True)]) for power in powers
                ],
                "best_power": confidence([_lowest(powers, own) for own in errors]),
            }
        )
    limits = [random_constant(d) * LAWS[law].bound(d, power) for power in powers]
    return {
        "codes": "drawn",
        "law": law,
        "d": d,
        "powers": powers,
        "limits": [limit if math.isfinite(limit) else None for limit in limits],
        "sizes": rows,
    }


def _uniform(number: int, d: int, generator: Generator) -> Tensor:  # float64 [number, d], never 0 or 1
    return (torch.randint(2**40, (number, d), generator=generator).double() + 0.5) / 2**40


def _lowest(powers: list[float], errors: list[float]) -> float:
    """Where a parabola through log E over log power is least; the end of the powers where the least is there."""
    i = min(range(len(errors)), key=errors.__getitem__)
    if i in (0, len(errors) - 1):
        return powers[i]
    x = [math.log(power) for power in powers[i - 1 : i + 2]]
    y = [math.log(error) for error in errors[i - 1 : i + 2]]
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    # The slope is `left` in the middle of the first interval and `right` in that of the second.
    return math.exp((x[0] + x[1]) / 2 - left * (x[2] - x[0]) / 2 / (right - left))


def measure_optimal(
    law: str,
    d: int,
    *,
    codebook_sizes: tuple[int, ...],
    num_features: int,
    iterations: int,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Means and 95 % confidence intervals over independent draws."""
    limit = OPTIMAL_CONSTANT[d] * LAWS[law].bound(d, optimal_power(d)) if d in OPTIMAL_CONSTANT else None
    rows = []
    for K in codebook_sizes:
        values: dict[str, list[float]] = {"E": [], "to_theorem": [], "to_features": [], "fitted_power": []}
        for repeat in range(repeats if d > 1 else 2):
            generator = Generator().manual_seed(seed + repeat)
            u = _uniform(K, d, generator)
            if d == 1:
                e = _lloyd_on_the_line(LAWS[law], LAWS[law].inverse(u, 1.0))
                held_out = LAWS[law].inverse((torch.arange(_QUANTILES).double()[:, None] + 0.5) / _QUANTILES, 1.0)
            else:
                z, held_out = (LAWS[law].inverse(_uniform(num_features, d, generator), 1.0).float() for _ in range(2))
                ends = [_lloyd(z, LAWS[law].inverse(u, power).float(), iterations) for power in _STARTS]
                errors = [float(quantization_error(z, end)) for end in ends]
                e = ends[errors.index(min(errors))]
            to_power = {power: _distance(LAWS[law], e, power) for power in (optimal_power(d), 1.0, *_FITTED)}
            values["E"].append(float(quantization_error(held_out, e)))
            values["to_theorem"].append(to_power[optimal_power(d)])
            values["to_features"].append(to_power[1.0])
            values["fitted_power"].append(min(_FITTED, key=to_power.__getitem__))
        rows.append({"K": K, **{name: confidence(own) for name, own in values.items()}})
    return {"codes": "optimal", "law": law, "d": d, "limit": limit, "sizes": rows}


def _lloyd(
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    iterations: int,
) -> Tensor:  # [K, d]
    """k-means; a code without features stays."""
    for _ in range(iterations):
        sums, counts = code_sums(z, nearest_code(z, e)[1], len(e))
        e = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), e)
    return e


def _lloyd_on_the_line(
    law: Law,
    e: Tensor,  # float64 [K, 1]
) -> Tensor:  # [K, 1]
    """k-means to its end, with the means of f itself between the middles of neighbours."""
    e = e[:, 0].sort().values
    low, high = (e.new_tensor([end]) for end in law.support)
    moved = math.inf
    while moved > _STILL:
        edges = torch.cat([low, (e[1:] + e[:-1]) / 2, high])
        means = law.moment_below(edges).diff() / law.cdf(edges, 1.0).diff()
        moved, e = float((means - e).abs().max()), means
    return e[:, None]


def _distance(law: Law, e: Tensor, power: float) -> float:
    """Kolmogorov and Smirnov's, of all coordinates to f^power."""
    x = e.double().flatten().sort().values
    cdf = law.cdf(x, power)
    steps = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    return float(torch.maximum(cdf - steps[:-1], steps[1:] - cdf).max())


def conclude(results: Results) -> tuple[list[dict[str, Any]], list[str]]:
    """Summary and verdict."""
    optimal, drawn = (
        [cell for cell in results.values() if cell.get("codes") == codes] for codes in ("optimal", "drawn")
    )
    summary, verdict = [], []
    for cell in optimal:
        last, d = cell["sizes"][-1], cell["d"]
        sizes = ", ".join(str(row["K"]) for row in cell["sizes"])
        told = [
            f"{what} {', '.join(_told(row[name]) for row in cell['sizes'])}"
            for name, what in (
                ("fitted_power", "fitted power"),
                ("to_theorem", "distance to f^(d/(d+2))"),
                ("to_features", "to f"),
            )
        ]
        if cell["limit"] is not None:
            ratios = [row["E"][0] * row["K"] ** (2 / d) / cell["limit"] for row in cell["sizes"]]
            told.append(f"E over its limit {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
        verdict.append(
            f"Theorem 2, optimal codes, {cell['law']}, d = {d}, d/(d+2) = {optimal_power(d):.3f}, K = {sizes}: "
            f"{'; '.join(told)}."
        )
        summary.append(
            {name: cell[name] for name in ("law", "d", "codes", "limit")} | {"d/(d+2)": optimal_power(d), **last}
        )
    nearer = sum(row["to_theorem"][0] + row["to_theorem"][1] < row["to_features"][0] - row["to_features"][1]
                 for row in summary)  # fmt: skip
    verdict.append(
        f"Theorem 2, optimal codes nearer to f^(d/(d+2)) than to f: {nearer} of {len(summary)} at the largest K."
    )
    held = 0
    for cell in drawn:
        d, matched = cell["d"], cell["powers"].index(1.0)
        best = cell["sizes"][-1]["best_power"]
        holds = abs(best[0] - optimal_power(d)) <= best[1]
        held += holds
        verdict.append(
            f"Theorem 2, drawn codes, {cell['law']}, d = {d}, d/(d+2) = {optimal_power(d):.3f}, K = "
            f"{', '.join(str(row['K']) for row in cell['sizes'])}: least E at power "
            f"{', '.join(_told(row['best_power']) for row in cell['sizes'])}; E of the features' own law over that of "
            f"f^(d/(d+2)) {', '.join(_told(row['over_optimal'][matched]) for row in cell['sizes'])}."
        )
        summary.append(
            {name: cell[name] for name in ("law", "d", "codes")}
            | {"d/(d+2)": optimal_power(d), "K": cell["sizes"][-1]["K"], "best_power": best, "holds": holds}
            | {"matched_over_optimal": cell["sizes"][-1]["over_optimal"][matched]}
        )
    verdict.append(
        f"Theorem 2, drawn codes, least E at d/(d+2) within the interval: {held} of {len(drawn)} at the largest K."
    )
    return summary, verdict


def _told(value: list[float]) -> str:
    return f"{value[0]:.3f} +- {value[1]:.3f}"


def draw_errors(results: Results, d: int, ax: Axes) -> None:
    """E over the power of the density that codes are drawn from, at the largest K, and its limit."""
    K = 0
    for law, color, marker in zip(LAWS, COLORS, "os^", strict=False):
        cell = results[drawn_key(law, d)]
        powers, last = cell["powers"], cell["sizes"][-1]
        K = last["K"]
        mean, half = zip(*last["over_optimal"], strict=True)
        ax.errorbar(
            powers, mean, yerr=half, color=color, marker=marker, markersize=4, capsize=2, label=f"features: {law}"
        )
        limit = cell["limits"][powers.index(optimal_power(d))]
        known = [(power, own / limit) for power, own in zip(powers, cell["limits"], strict=True) if own]
        ax.plot(*zip(*known, strict=True), color=color, linestyle=":", label="limit as K grows")
    ax.axvline(optimal_power(d), color="black", linewidth=1, linestyle="--", label="d / (d + 2)")
    ax.axvline(1, color=COLORS[4], linewidth=1, label="features' own law")
    ax.set(ylim=(0.9, 2.1), xlabel="a, codes drawn from $f^a$", ylabel="E over that at a = d / (d + 2)")
    ax.set_title(f"Theorem 2, d = {d}, K = {K}", fontsize=10)


def draw_powers(results: Results, d: int, ax: Axes) -> None:
    """The power of the least E, and that of optimal codes, over K."""
    sizes = set()
    for law, color, marker in zip(LAWS, COLORS, "os^", strict=False):
        for name, key, look in (
            ("best_power", drawn_key(law, d), {"label": f"features: {law}"}),
            ("fitted_power", optimal_key(law, d), {"linestyle": "-.", "mfc": "white", "label": "optimal codes"}),
        ):
            if key in results:
                rows = results[key]["sizes"]
                sizes |= {row["K"] for row in rows}
                mean, half = zip(*(row[name] for row in rows), strict=True)
                style: dict[str, Any] = look | {"color": color, "marker": marker, "markersize": 5, "capsize": 2}
                ax.errorbar([row["K"] for row in rows], mean, yerr=half, **style)
    ax.axhline(optimal_power(d), color="black", linewidth=1, linestyle="--", label="d / (d + 2)")
    ax.set(xscale="log", ylim=(0, None), xlabel="K, codes", ylabel="best a")
    ax.set_xticks(sorted(sizes), [str(K) for K in sorted(sizes)], minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title(f"Theorem 2, d = {d}", fontsize=10)
