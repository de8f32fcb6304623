"""Figure 3 of the Wasserstein VQ paper: E, U and C of codes from one disk for features from another.

Features and codes are uniform on disks. The features' has radius 1; the codes' is

    support    moved along the first axis: the features' centre is at 1.4, the codes' at -0.6 ... 1.4
    width      of radius 0.4 ... 1.6 about the same centre

Published values are what the public code of the paper (VQ-Research/Wasserstein-VQ) prints at its seed: one draw. Its
"E" is the root of Criterion 1, and so it is here: root E. Its C takes log(p + 1e-10), which changes C by less than 1e-7
of it. Here a panel is 50 draws, and the same ones whatever the panel: only where the codes lie and how wide differs.
"""

import dataclasses
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Generator, Tensor

from vqdm_cuda import criterion_triple, nearest_code
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, measure, new_axes

__all__ = ["FULL", "PANELS", "QUICK", "VALUES", "Panel", "Settings", "run"]

VALUES = ("root E", "U", "C")
_FEATURES_AT = 1.4


class Panel(NamedTuple):
    """Where the disks lie, and what was published."""

    part: str
    x: float  # what changes in the part: the codes' centre, or radius
    published: tuple[float, float, float]  # VALUES
    printed: dict[str, float]  # in the paper, where it differs

    @property
    def features_at(self) -> float:
        return _FEATURES_AT if self.part == "support" else 0.0

    @property
    def codes_at(self) -> float:
        return self.x if self.part == "support" else 0.0

    @property
    def radius(self) -> float:
        return 1.0 if self.part == "support" else self.x


PANELS = {
    f"{part}, {x:g}": Panel(part, x, published, printed)
    for part, x, published, printed in (
        ("support", -0.7, (1.2770, 0.0150, 3.655), {}),
        ("support", -0.6, (1.1917, 0.0200, 3.8073), {}),
        ("support", 0.0, (0.7012, 0.2075, 16.53), {}),
        ("support", 0.7, (0.2587, 0.5775, 96.92), {}),
        ("support", 1.4, (0.0500, 1.0000, 344.896), {}),
        ("width", 0.4, (0.3594, 0.9325, 63.199), {}),
        ("width", 0.8, (0.0962, 0.9975, 250.48), {}),
        ("width", 1.0, (0.0512, 0.9950, 337.9), {}),
        ("width", 1.1, (0.0560, 0.8900, 286.7), {}),
        ("width", 1.3, (0.0622, 0.6775, 224.1), {}),
        # The public code draws this disk's codes sixth. As the fifth its seed gives them U = 0.4525: the figure was
        # made from a list of one radius less.
        ("width", 1.6, (0.0802, 0.4925, 159.6), {"U": 0.453}),
    )
}
_PARTS = {"support": "centre of the codes (features at 1.4)", "width": "radius of the codes (features 1)"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    num_features: int = 10_000
    codebook_size: int = 400
    draws: int = 50
    shown_features: float = 0.1  # shares that are drawn, of the first draw
    shown_codes: float = 0.9
    seed: int = 0


FULL = Settings()
QUICK = Settings(draws=10)


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {key: partial(_panel, settings, panel) for key, panel in PANELS.items()}
    return measure("figure3", out, settings, cells, partial(_conclude, settings), partial(_draw, settings))


def _points(settings: Settings, panel: Panel, draw: int) -> tuple[Tensor, Tensor]:  # features [N, 2], codes [K, 2]
    generator = Generator().manual_seed(settings.seed + draw)
    z, e = (_disk(number, generator) for number in (settings.num_features, settings.codebook_size))
    return z + torch.tensor([panel.features_at, 0.0]), panel.radius * e + torch.tensor([panel.codes_at, 0.0])


def _disk(number: int, generator: Generator) -> Tensor:  # [number, 2], uniform on the disk of radius 1
    radius, turn = torch.rand(2, number, generator=generator)
    angle = 2 * math.pi * turn
    return radius.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


def _panel(settings: Settings, panel: Panel) -> dict[str, Any]:
    """Mean and standard deviation over the draws."""
    values: dict[str, list[float]] = {name: [] for name in VALUES}
    for draw in range(settings.draws):
        E, U, C = (float(x) for x in criterion_triple(*_points(settings, panel, draw)))
        for name, value in zip(VALUES, (math.sqrt(E), U, C), strict=True):
            values[name].append(float(f"{value:.6g}"))
    return {
        "part": panel.part,
        "x": panel.x,
        **{
            name: {"mean": statistics.mean(own), "std": statistics.stdev(own), "draws": own}
            for name, own in values.items()
        },
    }


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict, outside = [], [], []
    for key, panel in PANELS.items():
        cell = results[key]
        told, row = [], {"panel": key, "part": panel.part, "x": panel.x}
        for name, published in _published(panel).items():
            mean, std = cell[name]["mean"], cell[name]["std"]
            apart = [(value - mean) / max(std, 1e-12) for value in published]  # few draws may all agree
            row[name] = {"mean": mean, "std": std, "published": published, "stds_apart": apart}
            for value, stds in zip(published, apart, strict=True):
                if abs(stds) > 3:
                    as_far = sum((draw - value) * stds >= 0 for draw in cell[name]["draws"])
                    outside.append(f"{name} of {key} ({stds:+.2f}; {as_far} of {settings.draws} draws are as far)")
            values = " and ".join(_told(name, value) for value in published)
            told.append(f"{name} {_told(name, mean)} +- {_told(name, std)}, published {values}")
        row["E"] = cell["root E"]["mean"] ** 2
        summary.append(row)
        verdict.append(f"{key}: {'; '.join(told)}.")
    number = sum(len(VALUES) + len(panel.printed) for panel in PANELS.values())
    verdict.append(
        f"{number - len(outside)} of {number} published values lie within 3 standard deviations of {settings.draws} "
        f"draws; outside: {', '.join(outside) or 'none'}."
    )
    for part in _PARTS:
        cells = [cell for cell in results.values() if cell["part"] == part]
        lowest = min(cells, key=lambda cell: cell["root E"]["mean"])
        most, highest = (max((cell[name]["mean"], cell["x"]) for cell in cells)[1] for name in ("U", "C"))
        verdict.append(f"{_PARTS[part]}: root E is lowest at {lowest['x']:g}, U highest at {most:g}, C at {highest:g}.")
    return Conclusion(summary, verdict)


def _told(name: str, value: float) -> str:
    return {"root E": f"{value:.3g}", "U": f"{100 * value:.3g} %", "C": f"{value:.3g}"}[name]


def _draw(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(
        3,
        6,
        size=(17.5, 10.0),
        title=f"{settings.codebook_size} codes for {settings.num_features:,} features, both uniform on disks",
    )
    for part, row in (("support", axes[:6]), ("width", axes[6:12])):
        panels = {key: panel for key, panel in PANELS.items() if panel.part == part}
        for ax, (key, panel) in zip(row, panels.items(), strict=False):
            _draw_panel(settings, ax, panel, results[key])
    _legend(axes[5], settings.draws)
    for ax, (part, name) in zip(axes[12:], ((part, name) for part in _PARTS for name in VALUES), strict=True):
        _draw_curve(ax, part, name, [cell for cell in results.values() if cell["part"] == part])
    return figure


def _draw_panel(settings: Settings, ax: Axes, panel: Panel, cell: dict[str, Any]) -> None:
    z, e = _points(settings, panel, draw=0)
    used = torch.bincount(nearest_code(z, e)[1], minlength=len(e)) > 0
    ax.add_patch(Circle((panel.features_at, 0), 1.0, color=COLORS[1], alpha=0.18, linewidth=0))
    ax.add_patch(Circle((panel.codes_at, 0), panel.radius, color=COLORS[0], alpha=0.12, linewidth=0))
    shown = torch.arange(len(e)) < settings.shown_codes * len(e)
    some = z[: round(settings.shown_features * len(z))]
    for points, look in (
        (some, {"s": 2, "color": COLORS[1]}),
        (e[shown & ~used], {"s": 7, "facecolors": "white", "edgecolors": COLORS[4], "linewidths": 0.6}),
        (e[shown & used], {"s": 8, "color": COLORS[0]}),
    ):
        ax.scatter(points[:, 0].numpy(), points[:, 1].numpy(), **look)  # type: ignore[arg-type]
    told = [
        f"{name} {_told(name, cell[name]['mean'])} ({', '.join(_told(name, value) for value in values)})"
        for name, values in _published(panel).items()
    ]
    what = "centre" if panel.part == "support" else "radius"
    ax.set_title("\n".join((f"codes: {what} {panel.x:g}", *told)), fontsize=9)
    x, y = ((-1.75, 2.45), 1.05) if panel.part == "support" else ((-2.1, 2.1), 1.65)
    ax.set(xlim=x, ylim=(-y, y), aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _published(panel: Panel) -> dict[str, list[float]]:
    return {
        name: [value, *(own for printed, own in panel.printed.items() if printed == name)]
        for name, value in zip(VALUES, panel.published, strict=True)
    }


def _draw_curve(ax: Axes, part: str, name: str, cells: list[dict[str, Any]]) -> None:
    scale = 100 if name == "U" else 1
    ax.errorbar(
        [cell["x"] for cell in cells],
        [scale * cell[name]["mean"] for cell in cells],
        yerr=[3 * scale * cell[name]["std"] for cell in cells],
        color=COLORS[0],
        marker="o",
        markersize=4,
        capsize=3,
    )
    published = [
        (panel.x, scale * value) for panel in PANELS.values() if panel.part == part for value in _published(panel)[name]
    ]
    ax.plot(*zip(*published, strict=True), "x", color=COLORS[1], markersize=8, zorder=3)
    label = {"root E": "root E", "U": "U, codes used [%]", "C": "C, perplexity"}[name]
    ax.set(ylim=(0, None), xlabel=_PARTS[part])
    ax.set_title(label, fontsize=10)


def _legend(ax: Axes, draws: int) -> None:
    ax.axis("off")
    handles = [
        Line2D([], [], color=COLORS[1], marker=".", linestyle="none", label="feature (a tenth is drawn)"),
        Line2D([], [], color=COLORS[0], marker="o", markersize=4, linestyle="none", label="code in use"),
        Line2D([], [], color=COLORS[4], marker="o", markersize=4, markerfacecolor="white", linestyle="none",
               label="code not used"),
        Line2D([], [], color=COLORS[0], marker="o", markersize=4, label=f"mean of {draws} draws,\n3 std either side"),
        Line2D([], [], color=COLORS[1], marker="x", markersize=8, linestyle="none", label="published, one draw"),
    ]  # fmt: skip
    ax.legend(handles=handles, loc="center", fontsize=9, frameon=False, title="(published in brackets)")
