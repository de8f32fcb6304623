"""Theorem 1 of the Wasserstein VQ paper, measured: full use and vanishing error need the support of the features alone.

Features are uniform on the ball of radius 1 in d dimensions, codes are drawn from

    same law         the features'
    same support     on that ball, but denser towards its centre
    wider            uniform on the ball of radius 1.5
    narrower         uniform on the ball of radius 0.7
    moved            uniform on the ball of radius 1 about another centre, 0.5 away

Full use: U of K codes as the number of features grows. Vanishing error: the largest squared distance of a feature to
its nearest code (the theorem's E is the worst over all sets of features) as K grows. Both are limits: what is told is
how the share of unused codes and the worst error fell over the last 16-fold of N and of K.
"""

from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from vqdm_cuda import nearest_code
from vqdm_train.experiments.common import COLORS, Results, confidence, log_axis

__all__ = ["CODES", "conclude", "draw", "key", "measure_use_and_error"]


class Codes(NamedTuple):
    """Where the codes are; `of` 1 is uniform, 2 denser towards the centre."""

    radius: float = 1.0
    moved: float = 0.0
    of: float = 1.0
    full_use: bool = True  # what the theorem says
    vanishing_error: bool = True


CODES = {
    "same law": Codes(),
    "same support": Codes(of=2.0),
    "wider": Codes(radius=1.5, full_use=False),
    "narrower": Codes(radius=0.7, vanishing_error=False),
    "moved": Codes(moved=0.5, full_use=False, vanishing_error=False),
}
_GROWTH = 16


def key(name: str, d: int) -> str:
    """Of the cell."""
    return f"Theorem 1, {name}, d {d}"


def _ball(number: int, d: int, of: float, generator: Generator) -> Tensor:  # [number, d]
    direction = torch.nn.functional.normalize(torch.randn(number, d, generator=generator))
    return torch.rand(number, 1, generator=generator) ** (of / d) * direction


def measure_use_and_error(
    name: str,
    d: int,
    *,
    codebook_size: int,  # of U
    nums_features: tuple[int, ...],  # of U, growing
    codebook_sizes: tuple[int, ...],  # of the error, growing
    num_features: int,  # of the error
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Means and 95 % confidence intervals over independent draws; in a draw, the smaller sets begin the larger."""
    law = CODES[name]
    unused: list[list[float]] = []
    worst: list[list[float]] = []
    for repeat in range(repeats):
        generator = Generator().manual_seed(seed + repeat)
        z = _ball(max(*nums_features, num_features), d, 1.0, generator)
        e = law.radius * _ball(max(*codebook_sizes, codebook_size), d, law.of, generator)
        e[:, 0] += law.moved
        indices = nearest_code(z, e[:codebook_size])[1]
        unused.append([1 - indices[:N].unique().numel() / codebook_size for N in nums_features])
        worst.append([float(nearest_code(z[:num_features], e[:K])[0].max()) for K in codebook_sizes])
    return {
        "codes": name,
        "d": d,
        "N": list(nums_features),
        "unused": [confidence(list(values)) for values in zip(*unused, strict=True)],
        "K": list(codebook_sizes),
        "worst": [confidence(list(values)) for values in zip(*worst, strict=True)],
    }


def _fall(sizes: list[int], values: list[list[float]]) -> float:
    """The last mean over the one at a sixteenth of its size; 0 where nothing is left."""
    before = values[sizes.index(sizes[-1] // _GROWTH)][0]
    return values[-1][0] / before if before else 0.0


def conclude(results: Results) -> tuple[list[dict[str, Any]], list[str]]:
    """Summary and verdict."""
    summary, verdict = [], []
    cells = [cell for cell in results.values() if "unused" in cell]
    for name, law in CODES.items():
        told = []
        for cell in (cell for cell in cells if cell["codes"] == name):
            unused, worst = _fall(cell["N"], cell["unused"]), _fall(cell["K"], cell["worst"])
            row = {
                "codes": name,
                "d": cell["d"],
                "unused": cell["unused"][-1],
                "unused_over_that_before": unused,
                "worst": cell["worst"][-1],
                "worst_over_that_before": worst,
            }
            summary.append(row)
            told.append(
                f"d = {cell['d']}: {cell['unused'][-1][0]:.2%} unused, {unused:.2f} times that at N / {_GROWTH}, worst "
                f"error {cell['worst'][-1][0]:.2g}, {worst:.2f} times that at K / {_GROWTH}"
            )
        should = f"{'full' if law.full_use else 'no full'} use, error {'vanishes' if law.vanishing_error else 'stays'}"
        verdict.append(f"Theorem 1, codes {name} ({should}): {'; '.join(told)}.")
    for d in sorted({row["d"] for row in summary}):
        told = []
        for what, promised, label in (
            ("unused", "full_use", "unused codes"),
            ("worst", "vanishing_error", "the worst error"),
        ):
            falls: dict[bool, list[float]] = {True: [], False: []}
            for row in (row for row in summary if row["d"] == d):
                falls[getattr(CODES[row["codes"]], promised)].append(row[f"{what}_over_that_before"])
            told.append(
                f"{label} fell to {max(falls[True]):.2f} times or less where they should vanish, to "
                f"{min(falls[False]):.2f} times or more where they should not"
            )
        verdict.append(f"Theorem 1, d = {d}, over the last {_GROWTH}-fold: {'; '.join(told)}.")
    return summary, verdict


def draw(results: Results, d: int, use: Axes, error: Axes) -> None:
    """Unused codes over N, and the worst error over K, for every law of the codes; dotted where they should stay."""
    for (name, law), color, marker in zip(CODES.items(), COLORS, "os^vD", strict=True):
        cell = results[key(name, d)]
        look: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "markersize": 4,
            "capsize": 2,
            "label": f"codes: {name}",
        }
        for ax, sizes, values, vanishes, scale in (
            (use, cell["N"], cell["unused"], law.full_use, 100),
            (error, cell["K"], cell["worst"], law.vanishing_error, 1),
        ):
            left = [
                (size, scale * mean, scale * half) for size, (mean, half) in zip(sizes, values, strict=True) if mean
            ]
            x, y, bars = zip(*left, strict=True)
            # An interval that reaches 0 has no lower end on a logarithmic axis.
            low = [min(half, 0.7 * mean) for mean, half in zip(y, bars, strict=True)]
            ax.errorbar(x, y, yerr=(low, bars), linestyle="-" if vanishes else ":", **look)
    for ax, name, what in ((use, "N, features", "unused codes [%]"), (error, "K, codes", "worst squared error")):
        log_axis(ax)
        ax.set(xscale="log", xlabel=name, ylabel=what)
        ax.set_title(f"Theorem 1, d = {d}", fontsize=10)
