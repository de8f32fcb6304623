"""Figure 8 of the OptVQ paper: what float32 makes of costs with and without its normalisation.

The published recursion starts from exp(-10 c), c = ||z_i - e_k||, in float32: below exp(-103.97) that is 0, and where a
feature has only zeros its row of the plan stays zero and argmax says code 0. Measured as the formula is written, with c
as it is and normalised (less mean, over std, less minimum): entries that are 0, rows that are 0 whole, features whose
code after 5 iterations is that of exact Sinkhorn for the same costs, and codes used. Exact is the log domain in
float64, without the floor of 1e-8 that the published code adds to every sum.

    normal      features and codes from N(0, I)
    uniform     both uniform on [0, 1]
    outliers    normal, but 1 in 500 features is 8 times as far out
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from vqdm_cuda import sinkhorn
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.optvq_methods import costs, published_plans

__all__ = ["FULL", "LAWS", "QUICK", "SMALLEST_EXPONENT", "Settings", "run"]

LAWS = ("normal", "uniform", "outliers")
_OUTLYING = 500
SMALLEST_EXPONENT = 150 * math.log(2)  # exp(-x) rounds to 0 in float32 from here on: half of 2^-149


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    num_features: int = 2048
    codebook_size: int = 1024
    dims: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)
    shown_dims: tuple[int, ...] = (2, 8, 64, 512)  # as histograms
    bins: int = 60
    eps: float = 0.1
    num_iters: int = 5
    seed: int = 4


FULL = Settings()
QUICK = Settings(num_features=512, codebook_size=256, dims=(2, 8, 64, 512))


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {_key(law, d): partial(_underflow, settings, law, d) for law in LAWS for d in settings.dims}
    return measure("optvq-normalization", out, settings, cells, partial(_conclude, settings), partial(_draw, settings))


def _key(law: str, d: int) -> str:
    return f"{law}, d {d}"


def _points(settings: Settings, law: str, d: int) -> tuple[Tensor, Tensor]:  # [N, d], [K, d]
    generator = Generator().manual_seed(settings.seed)
    draw = torch.rand if law == "uniform" else torch.randn
    z = draw(settings.num_features, d, generator=generator)
    e = draw(settings.codebook_size, d, generator=generator)
    if law == "outliers":
        z[::_OUTLYING] *= 8
    return z, e


def _underflow(settings: Settings, law: str, d: int) -> dict[str, Any]:
    z, e = _points(settings, law, d)
    cell: dict[str, Any] = {"law": law, "d": d}
    for name, normalized in (("raw", False), ("normalized", True)):
        scores = -costs(z, e, normalized=normalized) / settings.eps
        zero = scores.exp() == 0
        *_, plan = published_plans(scores, settings.num_iters)
        published = plan.argmax(1)
        exact = sinkhorn(
            z.double(),
            e.double(),
            eps=settings.eps,
            num_iters=settings.num_iters,
            normalize="std" if normalized else None,
        )[2]
        shares = {
            "zero_entries": _share(zero),
            "zero_rows": _share(zero.all(1)),
            "zero_outliers": _share(zero.all(1)[::_OUTLYING]) if law == "outliers" else 0.0,
            "as_exact": _share(published == exact),
            "used": published.unique().numel() / len(e),
            "used_exact": exact.unique().numel() / len(e),
        }
        cell[name] = {key: round(value, 6) for key, value in shares.items()} | _histogram(settings, -scores)
    return cell


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _histogram(
    settings: Settings,
    exponents: Tensor,  # [N, K]
) -> dict[str, Any]:
    low, high = float(exponents.min()), float(exponents.max())
    shares = torch.histc(exponents, settings.bins, low, high) / exponents.numel()
    return {"smallest": low, "largest": high, "histogram": [round(x, 6) for x in shares.tolist()]}


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict = [], []
    names = ("zero_entries", "zero_rows", "as_exact", "used", "used_exact")
    for cell in results.values():
        row = {"law": cell["law"], "d": cell["d"]}
        summary.append(row | {kind: {name: cell[kind][name] for name in names} for kind in ("raw", "normalized")})
    for law in LAWS:
        cells = [results[_key(law, d)] for d in settings.dims]
        gone = next((cell["d"] for cell in cells if cell["raw"]["zero_rows"] >= 0.5), None)
        told = (
            f"from d = {gone} up at least half of the rows are all 0"
            if gone
            else f"at most {max(cell['raw']['zero_rows'] for cell in cells):.1%} of the rows are all 0"
        )
        last = cells[-1]
        verdict.append(
            f"{law}, not normalised: {told}; at d = {last['d']} {last['raw']['zero_entries']:.1%} of the entries are "
            f"0, {last['raw']['as_exact']:.1%} of the features get the exact code and {last['raw']['used']:.1%} of the "
            f"codes are used."
        )
        zero, rows = (max(cell["normalized"][name] for cell in cells) for name in ("zero_entries", "zero_rows"))
        least, most = (pick(cell["normalized"]["as_exact"] for cell in cells) for pick in (min, max))
        verdict.append(
            f"{law}, normalised: at most {zero:.2%} of the entries and {rows:.2%} of the rows are 0 at any d, and "
            f"{least:.1%} to {most:.1%} of the features get the exact code."
        )
        lost = [cell["d"] for cell in cells if cell["normalized"]["zero_outliers"] == 1]
        if law == "outliers":
            where = f"at d = {', '.join(map(str, lost))}" if lost else "nowhere"
            verdict.append(f"outliers, normalised: {where} all outlying features have a row of zeros, and so code 0.")
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(
        2,
        4,
        size=(14.5, 6.8),
        title="exp(-10 c) in float32: costs as they are (above) and normalised as published (below)",
    )
    for row, (kind, label) in enumerate((("raw", "10 c"), ("normalized", "10 c, normalised"))):
        histogram, *over_dims = axes[4 * row : 4 * row + 4]
        for d, color in zip(settings.shown_dims, COLORS, strict=False):
            of = results[_key("normal", d)][kind]
            width = (of["largest"] - of["smallest"]) / settings.bins
            left = [of["smallest"] + width * i for i in range(settings.bins)]
            density = [100 * share / width for share in of["histogram"]]
            histogram.fill_between(left, density, step="post", color=color, alpha=0.25)
            histogram.step(left, density, where="post", color=color, linewidth=1.2, label=f"d = {d}")
        histogram.axvline(SMALLEST_EXPONENT, color="black", linewidth=1, linestyle="--")
        histogram.axvspan(SMALLEST_EXPONENT, 1e4, color="#e5e7eb", zorder=0)
        top = histogram.get_ylim()[1]
        histogram.text(SMALLEST_EXPONENT + 3, 0.97 * top, "exp is 0", fontsize=8, va="top")
        most = max(results[_key("normal", d)][kind]["largest"] for d in settings.shown_dims)
        histogram.set(
            xlim=(0, max(1.05 * most, 165)), ylim=(0, top), xlabel=f"{label}, normal", ylabel="density [% per 1]"
        )
        histogram.legend(fontsize=8, frameon=False, loc="center right" if row else "best")
        labels = {"zero_entries": "entries that are 0 [%]", "zero_rows": "rows that are all 0 [%]", "as_exact": ""}
        for ax, name in zip(over_dims, labels, strict=True):
            for law, color, marker in zip(LAWS, COLORS, "o^s", strict=False):
                cells = [results[_key(law, d)] for d in settings.dims]
                values = [100 * cell[kind][name] for cell in cells]
                ax.plot(settings.dims, values, color=color, marker=marker, markersize=4, label=law)
            ax.set_xscale("log", base=2)
            ax.set_xticks(settings.dims, [str(d) for d in settings.dims])
            least_top = 103 if row == 0 or name == "as_exact" else 1.0
            ax.set(
                ylim=(-0.03 * least_top, max(least_top, ax.get_ylim()[1]) if row else least_top), xlabel="d, dimensions"
            )
            ax.set_title(labels[name] or "features with the exact code [%]", fontsize=10)
        over_dims[0].legend(fontsize=8, frameon=False)
    return figure
