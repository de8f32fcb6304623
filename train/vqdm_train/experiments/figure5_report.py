"""What the cells of Figure 5 say, beside the published values, and how they are drawn."""

import dataclasses
from itertools import combinations
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vqdm_train.experiments.common import COLORS, Conclusion, Results, log_axis, new_axes, percent
from vqdm_train.experiments.figure5_methods import FULL, METHODS, Settings
from vqdm_train.experiments.figure5_published import PUBLISHED, Criteria

__all__ = ["cell_key", "conclude", "draw"]

# A colour for each system; what is measured of it beside its main run has a mark of its own.
_SYSTEMS = dict(zip(("wasserstein", "vanilla", "ema", "linear"), COLORS, strict=False)) | {
    "online": "#1f2937",
    "optvq": "#d6336c",
}
_MARKERS = {
    "wasserstein, rate-distortion target": "s",
    "wasserstein, published constants": "^",
    "ema, counts from 0": "v",
}


def cell_key(method: str, mean: float) -> str:
    """The name of a cell."""
    return f"{method}, mean {mean:g}"


def conclude(settings: Settings, results: Results) -> Conclusion:
    """Ours beside the published values; settings without published values, and quick runs, stand alone."""
    published = _published(settings)
    rows, verdict = [], []
    for result in results.values():
        method, mean = result["method"], result["mean"]
        row = {name: result[name] for name in ("method", "mean", *"EUCW")}
        sentence = f"{method}, mean {mean:g}: E {row['E']:.4f}, U {row['U']:.2%}, C {row['C']:.0f}, W {row['W']:.4f}"
        theirs = published.get(METHODS[method].published or "", {}).get(mean)
        if theirs is not None:
            row["published"] = dict(zip("EUCW", theirs, strict=True))
            row["difference_percent"] = {
                name: percent(row[name], value) for name, value in row["published"].items() if value is not None
            }
            E, U, C, W = theirs
            more = row["difference_percent"]
            sentence += f"; published {E:.4f}, {U:.2%}, {C:.0f}" + ("" if W is None else f", {W:.4f}")
            sentence += f" (E {more['E']:+.2f} %, C {more['C']:+.2f} %)"
            # Beside the published values of its own name, so that a variation of a method is not judged.
            if METHODS[method].published == method:
                row["reached"] = more["E"] <= 10
                sentence += "" if row["reached"] else ": missed"
        rows.append(row)
        verdict.append(sentence + ".")
    orders = _orders(rows)
    verdict += [
        f"Mean {order['mean']:g}: {order['smaller']} has a smaller E than {order['larger']} as published, not here."
        for order in orders
        if not order["kept"]
    ]
    if orders:
        verdict.append(
            "Order of E, where two published ones differ by more than 10 %: as published in "
            f"{sum(order['kept'] for order in orders)} of {len(orders)} pairs."
        )
    judged = [row["reached"] for row in rows if "reached" in row]
    if judged:
        verdict.append(f"E within 10 % of the published one or better: {sum(judged)} of {len(judged)} cells.")
    return Conclusion({"cells": rows, "orders": orders}, verdict)


def _orders(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pair of methods at one mean whose published E differ by more than 10 %: whether ours are in that order."""
    orders = []
    for one, other in combinations([row for row in rows if "reached" in row], 2):
        smaller, larger = sorted((one, other), key=lambda row: float(row["published"]["E"]))
        if one["mean"] == other["mean"] and larger["published"]["E"] > 1.1 * smaller["published"]["E"]:
            names = {"mean": one["mean"], "smaller": smaller["method"], "larger": larger["method"]}
            orders.append(names | {"kept": smaller["E"] < larger["E"]})
    return orders


def _published(settings: Settings) -> dict[str, dict[float, Criteria]]:
    """Those of the same constants, whatever the choice of means and the seed; none where there are none."""
    free = {name: getattr(FULL, name) for name in ("distribution", "means", "curve_mean", "seed")}
    return PUBLISHED[settings.distribution] if dataclasses.replace(settings, **free) == FULL else {}


def draw(settings: Settings, results: Results) -> Figure:
    """E, U, C and W over the steps at one mean, and over the means."""
    law = "even in mean + [-1, 1]^d" if settings.distribution == "uniform" else "from N(mean 1, I)"
    title = f"Features {law}, codes start as those of mean 0: K = {settings.codebook_size}, d = {settings.code_dim}"
    figure, axes = new_axes(2, 4, size=(15, 7.6), title=title)
    published = _published(settings)
    names = {"E": "E, quantization error", "U": "U, codes used [%]", "C": "C, perplexity", "W": "W, distance"}
    for column, (name, label) in enumerate(names.items()):
        scale = 100 if name == "U" else 1
        over_steps, over_means = axes[column], axes[4 + column]
        for method, means in settings.means.items():
            color, marker = _SYSTEMS[method.split(",")[0]], _MARKERS.get(method, "o")
            if settings.curve_mean in means and method not in _MARKERS:
                curve = results[cell_key(method, settings.curve_mean)]["curve"]
                over_steps.plot(curve["step"], [scale * value for value in curve[name]], color=color)
            ours = [scale * results[cell_key(method, mean)][name] for mean in means]
            over_means.plot(means, ours, marker, color=color, markersize=5, label=method)
        for method, theirs in published.items():
            values = {mean: criteria["EUCW".index(name)] for mean, criteria in theirs.items()}
            known = {mean: scale * value for mean, value in values.items() if value is not None}
            over_means.plot(
                list(known),
                list(known.values()),
                "D:",
                markersize=8,
                markerfacecolor="none",
                linewidth=0.8,
                color=_SYSTEMS[method],
                label=None if method in settings.means else f"{method}, published",
            )
        over_steps.set_title(label, fontsize=10)
        over_steps.set_xlabel(f"step, at mean {settings.curve_mean:g}")
        over_means.set_xlabel("mean of the features")
        if name in "EW":
            log_axis(over_steps)
            log_axis(over_means)
    handles, told = axes[4].get_legend_handles_labels()
    if published:
        look = Line2D([], [], marker="D", markersize=8, markerfacecolor="none", color="black", linestyle=":")
        handles.append(look)
        told.append("published, in the method's colour")
    figure.legend(handles, told, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure
