"""E, U and C where the codes follow the features' law and where they do not, over K, d and N: four figures of the
Wasserstein VQ paper (section 2.3, appendices C and D).

               features       codes
    figure4    N(0, I)        N(m 1, I) and N(0, s^2 I)
    figure7    Unif(-1, 1)    Unif(m - 1, m + 1) and Unif(-s, s)
    figure8    E alone, features and codes both from the laws that figure4 has for the codes
    figure9    the same, with the laws of figure7

Every law is m + s x of a base draw x. Where the codes alone move, all m and s of a repeat move one draw of codes beside
one draw of features, so their differences are paired; where both move, every m and s has draws of its own, since with
shared ones E would be the same, and s^2 times as large, by arithmetic. The first rows of a draw are those of a smaller
one: the cells over N and K are nested. The scale 0.5 is not in the paper; it shows what is left out there. K, d and N
end before the paper's 16384, 256 and 1,000,000.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from vqdm_cuda import criterion_triple
from vqdm_train.experiments.common import (
    COLORS,
    Conclusion,
    Files,
    Results,
    confidence,
    log_axis,
    measure,
    new_axes,
    percent,
)

__all__ = ["FULL", "QUICK", "Settings", "run"]

FAMILIES = ("mean", "scale")
AXES = {  # and the settings that hold the values along each, and the value while another varies
    "K": ("codebook_sizes", "default_codebook_size"),
    "d": ("dims", "default_dim"),
    "N": ("num_features", "default_num_features"),
}
_SYMBOL = {"mean": "m", "scale": "s"}
_NARROWER = 0.5  # a scale that the paper does not have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants. Where one of K, d and N varies, the other two have their defaults."""

    name: str
    law: str  # of the features: "gaussian" or "uniform"
    moving: str = "codes"  # or "both"
    means: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    codebook_sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    dims: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    num_features: tuple[int, ...] = (10_000, 20_000, 50_000, 100_000, 200_000)
    default_codebook_size: int = 1024
    default_dim: int = 32
    default_num_features: int = 200_000
    repeats: int = 5
    seed: int = 0

    @property
    def criteria(self) -> str:
        return "EUC" if self.moving == "codes" else "E"

    @property
    def places(self) -> dict[str, tuple[float, float]]:
        """Mean and scale of each law, the features' own first."""
        means = {f"mean {m:g}": (m, 1.0) for m in self.means if m != 0}
        return {"match": (0.0, 1.0)} | means | {f"scale {s:g}": (0.0, s) for s in self.scales if s != 1}


_WITH_NARROWER = (_NARROWER, *Settings.scales)
# The paper goes on to K = 16384 and d = 256, and has 200,000 features in all four: for the time these take, figure4
# ends at half of both, and the others, of a quarter of the features, at K = 4096, d = 64 and N = 200,000.
FULL = {
    settings.name: settings
    for settings in (
        Settings(
            name="figure4",
            law="gaussian",
            scales=_WITH_NARROWER,
            codebook_sizes=(*Settings.codebook_sizes, 8192),
            dims=(*Settings.dims, 128),
            num_features=(*Settings.num_features, 500_000, 1_000_000),
        ),
        Settings(name="figure7", law="uniform", scales=_WITH_NARROWER, default_num_features=50_000),
        Settings(name="figure8", law="gaussian", moving="both", default_num_features=50_000),
        Settings(name="figure9", law="uniform", moving="both", default_num_features=50_000),
    )
}
QUICK = {
    name: dataclasses.replace(
        settings,
        means=(0.0, 0.5, 1.5, 2.5),
        scales=tuple(scale for scale in settings.scales if scale in (_NARROWER, 1.0, 2.0, 6.0)),
        codebook_sizes=(128, 512, 2048),
        dims=(2, 8, 32),
        num_features=(5000, 20_000, 50_000),
        default_codebook_size=512,
        default_num_features=20_000,
        repeats=3,
    )
    for name, settings in FULL.items()
}


def run(out: Path, settings: Settings) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    sizes = sorted((size for axis in AXES for _, size in _sweep(settings, axis)), key=math.prod)  # the cheapest first
    cells = {_key(*size): partial(_measured, settings, *size) for size in sizes}
    conclude = _conclude_codes if settings.moving == "codes" else _conclude_both
    plan = tuple(field for field, _ in AXES.values())
    return measure(settings.name, out, settings, cells, partial(conclude, settings), partial(_draw, settings), plan)


def _sweep(settings: Settings, axis: str) -> list[tuple[int, tuple[int, int, int]]]:
    """The values along one axis, and K, d and N at each."""
    default = {name: getattr(settings, field) for name, (_, field) in AXES.items()}
    sizes = [default | {axis: value} for value in getattr(settings, AXES[axis][0])]
    return [(size[axis], (size["K"], size["d"], size["N"])) for size in sizes]


def _key(K: int, d: int, N: int) -> str:
    return f"K {K}, d {d}, N {N}"


# Measuring ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _measured(settings: Settings, K: int, d: int, N: int) -> dict[str, Any]:
    """For each law: means and 95 % intervals over the repeats, and how it stands against the match."""
    values: dict[str, list[tuple[float, ...]]] = {place: [] for place in settings.places}
    for repeat in range(settings.repeats):
        for number, (place, (mean, scale)) in enumerate(settings.places.items()):
            if number == 0 or settings.moving == "both":
                z, e = (_base_draw(settings, (repeat, number), rows, d, of) for of, rows in enumerate((N, K)))
            features = z if settings.moving == "codes" else mean + scale * z
            values[place].append(tuple(float(x) for x in criterion_triple(features, mean + scale * e)))
    cell: dict[str, Any] = {"K": K, "d": d, "N": N, "laws": {}}
    for place, (_, scale) in settings.places.items():
        unit = scale**2 if settings.moving == "both" else 1.0  # E of a law s times as wide is s^2 times as large
        cell["laws"][place] = {}
        for column, x in enumerate(settings.criteria):
            own, match = ([row[column] for row in values[which]] for which in (place, "match"))
            row = [float(f"{number:.5g}") for number in confidence(own)]
            sign = 1 if x == "E" else -1
            excess = [sign * (a / unit - b) for a, b in zip(own, match, strict=True)]
            cell["laws"][place][x] = {"mean": row[0], "interval": row[1], "against_match": _outcome(excess)}
    return cell


def _outcome(excess: list[float]) -> str:
    """Of a law that is worse than the match by this much in each repeat."""
    mean, interval = confidence(excess)
    return "worse" if mean > interval else "better" if -mean > interval else "same"


def _base_draw(settings: Settings, draw: tuple[int, int], rows: int, d: int, of: int) -> Tensor:  # [rows, d]
    """x of `of` = 0 the features, 1 the codes; the first rows are those of a draw with fewer."""
    seed = np.random.SeedSequence((settings.seed, *draw, d, of)).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(seed))
    if settings.law == "gaussian":
        return torch.randn(rows, d, generator=generator)
    return torch.rand(rows, d, generator=generator).mul_(2).sub_(1)


# Concluding -----------------------------------------------------------------------------------------------------------


def _conclude_codes(settings: Settings, results: Results) -> Conclusion:
    """Is the match best, of the laws that the paper has, in every panel?"""
    summary, verdict = [], []
    narrower = f"scale {_NARROWER:g}"
    for x, family in itertools.product(settings.criteria, FAMILIES):
        rivals = [place for place in settings.places if place.startswith(family) and place != narrower]
        best = {}
        for axis in AXES:
            laws = [results[_key(*size)]["laws"] for _, size in _sweep(settings, axis)]
            won = sum(all(law[rival][x]["against_match"] == "worse" for rival in rivals) for law in laws)
            best[axis] = [won, len(laws)]
            summary.append({"criterion": x, "family": family, "over": axis, "match_best": won, "of": len(laws)})
        sentence = f"{x} against other {family}s: best at the match, beyond the 95 % interval, in " + ", ".join(
            f"{won} of {of} settings of {axis}" for axis, (won, of) in best.items()
        )
        for word, outcome in (("not told apart from", "same"), ("worse than", "better")):
            where = {rival: _where(settings, results, rival, x, outcome) for rival in rivals}
            found = [f"{rival} at {at}" for rival, at in where.items() if at]
            sentence += f"; {word} {', '.join(found)}" if found else ""
        verdict.append(f"{sentence}.")
    for x in settings.criteria:
        better, worse = (_where(settings, results, narrower, x, way) or "none" for way in ("better", "worse"))
        verdict.append(f"{x} of {narrower}, not in the paper, against the match: better at {better}; worse at {worse}.")
    return Conclusion(summary, verdict)


def _where(settings: Settings, results: Results, place: str, x: str, outcome: str) -> str:
    """The settings in which a law has this outcome against the match: "K = 128, 256; d = 2"."""
    found = []
    for axis in AXES:
        rows = [(value, results[_key(*size)]["laws"][place][x]) for value, size in _sweep(settings, axis)]
        values = [f"{value}" for value, row in rows if row["against_match"] == outcome]
        found += [f"{axis} = {', '.join(values)}"] if values else []
    return "; ".join(found)


def _conclude_both(settings: Settings, results: Results) -> Conclusion:
    """What E depends on where codes have the features' law: not on the mean, on s^2, hardly on N, on K and on d."""
    summary, verdict = [], []
    for family, said in (("mean", "E"), ("scale", "E / s^2")):
        places = {place: scale for place, (_, scale) in settings.places.items() if place.startswith(family)}
        rows = [(key, cell["laws"], *place) for key, cell in results.items() for place in places.items()]
        changes = [
            (abs(percent(law[p]["E"]["mean"] / s**2, law["match"]["E"]["mean"])), key) for key, law, p, s in rows
        ]
        told = sum(law[place]["E"]["against_match"] != "same" for _, law, place, _ in rows)
        change, key = max(changes)
        summary.append({"over": family, "largest_change_percent": change, "told_apart": told, "of": len(rows)})
        verdict.append(
            f"{said} at other {family}s: {change:.2g} % from E at the match where the difference is largest ({key}), "
            f"median {sorted(changes)[len(changes) // 2][0]:.2g} %; beyond the 95 % interval in {told} of {len(rows)} "
            f"(by chance: {0.05 * len(rows):.0f})."
        )
    for axis in AXES:
        sweep = _sweep(settings, axis)
        lines = [[results[_key(*size)]["laws"][place]["E"]["mean"] for _, size in sweep] for place in settings.places]
        falls = sum(all(a > b for a, b in itertools.pairwise(line)) for line in lines)
        grows = sum(all(a < b for a, b in itertools.pairwise(line)) for line in lines)
        spread = max(max(line) / min(line) for line in lines)
        first, last = lines[0][0], lines[0][-1]
        summary.append({"over": axis, "match": lines[0], "spread": spread, "falls": falls, "grows": grows})
        verdict.append(
            f"E over {axis} from {sweep[0][0]} to {sweep[-1][0]}: {first:.4g} to {last:.4g} at the match, times "
            f"{last / first:.4g}; falls at every step in {falls} and grows at every step in {grows} of {len(lines)} "
            f"laws; largest over smallest in a law at most {spread:.4g}."
        )
    return Conclusion(summary, verdict)


# Drawing --------------------------------------------------------------------------------------------------------------


def _draw(settings: Settings, results: Results) -> Figure:
    panels = list(itertools.product(settings.criteria, FAMILIES, AXES))
    columns = 6 if settings.moving == "codes" else 3
    rows = len(panels) // columns
    laws = {
        "gaussian": ("N(0, I)", "N(m 1, I) or N(0, s² I)"),
        "uniform": ("Unif(-1, 1)", "Unif(m - 1, m + 1) or Unif(-s, s)"),
    }[settings.law]
    title = "Features and codes from {1}" if settings.moving == "both" else "Features from {0}, codes from {1}"
    figure, axes = new_axes(rows, columns, size=(2.9 * columns + 0.6, 2.8 * rows + 1.0), title=title.format(*laws))
    for ax, (x, family, axis) in zip(axes, panels, strict=True):
        _panel(ax, settings, results, x, family, axis)
    sides: tuple[Literal["outside lower left", "outside lower right"], ...] = (
        "outside lower left",
        "outside lower right",
    )
    for number, side in enumerate(sides):  # means and scales
        lines = axes[3 * number].get_legend_handles_labels()
        figure.legend(
            *lines,
            loc=side,
            ncols=len(lines[0]),
            fontsize=8,
            frameon=False,
            handlelength=1.4,  # narrow: both legends fit below three columns
            handletextpad=0.4,
            columnspacing=0.9,
        )
    return figure


def _panel(ax: Axes, settings: Settings, results: Results, x: str, family: str, axis: str) -> None:
    sweep = _sweep(settings, axis)
    for value, place, style in _lines(settings, family):
        rows = [results[_key(*size)]["laws"][place][x] for _, size in sweep]
        unit = 100 if x == "U" else 1
        mean, interval = (unit * np.array([row[key] for row in rows]) for key in ("mean", "interval"))
        at = [at for at, _ in sweep]
        ax.plot(at, mean, marker="o", markersize=3.5, label=f"{_SYMBOL[family]} = {value:g}", **style)
        low, high = mean - interval, mean + interval
        if x == "C":
            low = np.maximum(low, 1)  # which no perplexity is below
        ax.fill_between(at, low, high, color=style["color"], alpha=0.2, linewidth=0)
    ax.set_xscale("log")
    ax.set_xticks([at for at, _ in sweep], [_short(at) for at, _ in sweep], rotation=45)
    ax.xaxis.set_minor_locator(NullLocator())
    if x == "U":
        ax.set_ylim(-3, 103)
    else:
        log_axis(ax)
    ax.set_xlabel(axis)
    ax.set_ylabel("U [%]" if x == "U" else x)
    ax.set_title(f"{x} over {axis}, {family}s {_SYMBOL[family]}", fontsize=10)


def _short(number: int) -> str:
    """10k for 10,000 and 1M for a million; K and d are powers of two and stay as they are."""
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if number % size == 0:
            return f"{number // size}{letter}"
    return str(number)


def _lines(settings: Settings, family: str) -> Iterable[tuple[float, str, dict[str, Any]]]:
    """Value, place and style: the match black and thick, the others from dark to light, what the paper lacks dashed."""
    values = settings.means if family == "mean" else settings.scales
    own = 0.0 if family == "mean" else 1.0
    colors = iter(matplotlib.colormaps["viridis"](np.linspace(0.2, 0.95, sum(value > own for value in values))))
    for value in values:
        if value == own:
            yield value, "match", {"color": "black", "linewidth": 2.4}
        elif value < own:
            yield value, f"{family} {value:g}", {"color": COLORS[1], "linewidth": 1.6, "linestyle": "--"}
        else:
            yield value, f"{family} {value:g}", {"color": next(colors), "linewidth": 1.3}
