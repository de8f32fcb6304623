"""Charts of a report, as SVG that takes its colours and its font from the page around it.

Matplotlib draws with placeholder colours, which become the page's CSS variables, so one drawing serves light and dark.
Charts carry numbers only; every word that a user chose stands in the page's HTML, where it is escaped.
"""

import io
import math
import re
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

__all__ = ["NUM_COLORS", "Line", "code_use_chart", "curve_chart", "part_chart"]

NUM_COLORS = 6  # --series-0 ... --series-5 of the page; more runs use them again
_INK, _GRID = "#010101", "#020202"
_SERIES = [f"#0300{i:02d}" for i in range(NUM_COLORS)]
_MAX_POINTS = 800  # per line: more than there are pixels
_SMOOTH_FROM = 60  # points from which a running mean is drawn over the raw curve


class Line(NamedTuple):
    """Values over steps, in the colour of a run."""

    steps: list[int]
    values: list[float]
    color: int = 0
    dashed: bool = False
    opacity: float = 1.0


def curve_chart(
    lines: list[Line],
    *,
    log: bool = False,
    percent: bool = False,
    smooth: bool = True,
) -> str:
    """Values over steps, all in one pair of axes. Long lines are thin, under their running mean (`smooth`).

    `log` holds where all values are positive and span more than a factor of 10.
    """
    figure, axes = _axes(4.2, 2.35)
    finite = [value for line in lines for value in line.values if math.isfinite(value)]
    if log and finite and min(finite) > 0 and max(finite) > 10 * min(finite):
        _log_axis(axes, min(finite), max(finite))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %" if percent else _short(y)))
    for line in lines:
        values = np.array([value if math.isfinite(value) else math.nan for value in line.values])  # a gap in the line
        long = smooth and len(values) >= _SMOOTH_FROM
        keep = _thin(len(values))
        steps = np.array(line.steps)[keep]
        style: dict[str, Any] = {
            "color": _SERIES[line.color % NUM_COLORS],
            "linestyle": (0, (3, 2)) if line.dashed else "-",
        }
        axes.plot(
            steps,
            values[keep],
            linewidth=0.8 if long else 1.6,
            alpha=line.opacity * (0.3 if long else 1),
            marker="o" if len(values) == 1 else None,
            markersize=4,
            **style,
        )
        if long:
            axes.plot(steps, _running_mean(values)[keep], linewidth=1.6, alpha=line.opacity, **style)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
    return _svg(figure)


def code_use_chart(
    counts: list[list[int]],  # per run: [K] times each code was used; an empty list for none
) -> str:
    """Times each code was used, most used first, on a log scale; the end of a line is the last code used at all.

    Dashed, in the run's colour: all codes used alike.
    """
    figure, axes = _axes(9.2, 3.0)
    largest = max((max(run) for run in counts if run), default=1)
    _log_axis(axes, 1, largest)
    for i, run in enumerate(counts):
        used = np.sort([count for count in run if count > 0])[::-1]
        if not len(used):
            continue
        color = _SERIES[i % NUM_COLORS]
        keep = _thin(len(used))
        ranks = np.arange(1, len(used) + 1)
        axes.plot(ranks[keep], used[keep], color=color, linewidth=1.8)
        axes.fill_between(ranks[keep], 1e-9, used[keep], color=color, alpha=0.10, linewidth=0)
        axes.plot([len(used)], [used[-1]], color=color, marker="o", markersize=4.5)
        alike = used.sum() / len(run)
        axes.plot([1, len(run)], [alike, alike], color=color, linewidth=1, linestyle=(0, (4, 4)), alpha=0.8)
    axes.set_ylim(0.7, max(2.0, 1.6 * largest))
    axes.set_xlim(0, max((len(run) for run in counts), default=1) * 1.01)
    axes.set_xlabel("code, most used first")
    axes.set_ylabel("times used")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
    return _svg(figure)


def part_chart(
    names: list[str],  # of the scales, heads or depths, in their order
    values: list[list[float]],  # one list for each run, NaN where it has no such part
    *,
    percent: bool = False,
) -> str:
    """One value for each part of the tokens, the runs in one pair of axes."""
    figure, axes = _axes(4.2, 2.35)
    for i, of_run in enumerate(values):
        axes.plot(range(len(names)), of_run, color=_SERIES[i % NUM_COLORS], linewidth=1.6, marker="o", markersize=4.5)
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
    axes.set_ylim(bottom=0)
    every = -(-len(names) // 12)  # labels that fit side by side
    axes.set_xticks(range(0, len(names), every), names[::every])
    axes.set_xlim(-0.4, len(names) - 0.6)
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)  # no pyplot: nothing global is touched
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=0, pad=5)
    axes.xaxis.label.set(color=_INK, size=9)
    axes.yaxis.label.set(color=_INK, size=9)
    axes.margins(x=0.01, y=0.08)
    return figure, axes


def _log_axis(axes: Axes, low: float, high: float) -> None:
    subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0, 3.0) if high < 1000 * low else (1.0,)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _short(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _thin(count: int) -> np.ndarray:
    """Indices of at most _MAX_POINTS evenly spread points, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, _MAX_POINTS)).round().astype(int))


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the neighbours within 1/40 of the curve to either side, of those that there are; a gap stays a gap."""
    reach = max(1, len(values) // 40)
    there = ~np.isnan(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    number = np.concatenate([[0], np.cumsum(there)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return np.where(there, (total[last] - total[first]) / np.maximum(number[last] - number[first], 1), np.nan)


def _short(value: float) -> str:
    """1500 -> 1.5k, 0.00012 -> 1.2e-4, 0.30000000000000004 -> 0.3."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{letter}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _svg(figure: Figure) -> str:
    """The drawing as an <svg> element without fixed size, colours, font, metadata or addresses."""
    buffer = io.StringIO()
    # Text stays text (selectable, in the page's font); the salt makes the same data give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vqdm"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', drawing)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    drawing = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img">', drawing, count=1)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing).replace("xlink:href", "href")
    drawing = re.sub(r'font: [^;"]*|font-family: [^;"]*', "", drawing)
    drawing = drawing.replace(_INK, "var(--muted)").replace(_GRID, "var(--line)")
    for i, placeholder in enumerate(_SERIES):
        drawing = drawing.replace(placeholder, f"var(--series-{i})")
    return re.sub(r"\n\s*", "\n", drawing).strip()
