"""What every experiment shares: cells that a killed run need not measure again, NAME.json, NAME.png and their style.

An experiment is a list of cells, each measured on its own from the settings alone (so that a cell is the same numbers
whichever were measured before it), then a conclusion and a figure from all of them. NAME.json is rewritten in one
atomic step after each cell, and the same command goes on from the cells that it finds there.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from vqdm_cuda import __version__
from vqdm_train.evaluate import write_json
from vqdm_train.files import replace_file

__all__ = [
    "COLORS",
    "Conclusion",
    "Files",
    "Results",
    "confidence",
    "log_axis",
    "measure",
    "new_axes",
    "percent",
    "save_figure",
]

# Blue, orange, green, purple, grey: told apart in print and by colour-blind readers.
COLORS = ("#2366b0", "#d9791f", "#2f8f5b", "#7a4fa3", "#6b7280")
_DPI = 120
# Two-sided 95 % quantiles of Student's t, by the number of values (degrees of freedom plus one).
_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
Results = dict[str, dict[str, Any]]  # by cell


class Conclusion(NamedTuple):
    """What the cells say together."""

    summary: Any  # for programs: tables, differences to published values
    verdict: list[str]  # for people: short sentences made of the numbers


class Files(NamedTuple):
    """What an experiment wrote."""

    json: Path
    png: Path
    verdict: list[str]
    more: tuple[Path, ...] = ()  # further pictures, NAME-*.png


def measure(
    name: str,
    out: Path,
    settings: Any,  # a frozen dataclass of plain values: all constants, the seed among them
    cells: Mapping[str, Callable[[], dict[str, Any]]],  # measured in this order
    conclude: Callable[[Results], Conclusion],
    draw: Callable[[Results], Figure],
    plan: tuple[str, ...] = (),
    constants: Mapping[str, dict[str, Any]] | None = None,
    more: Mapping[str, Callable[[Results], Figure]] | None = None,
) -> Files:
    """Measures the cells that are not there yet, then writes NAME.json and NAME.png into `out`.

    `more` draws further pictures of the same cells: key KEY is written to NAME-KEY.png.

    `plan` names the settings that say which cells there are, not what is in one: they may change when a run goes on.
    `constants` are those of single cells; they are written with the cell, and one of other constants is measured again.
    """
    of_cells: Results = {} if constants is None else json.loads(json.dumps(constants))
    _prepare(out)
    target, picture = out / f"{name}.json", out / f"{name}.png"
    record: dict[str, Any] = {
        "experiment": name,
        "finished": False,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "version": __version__,
        "threads": torch.get_num_threads(),
        "seconds": 0.0,
        "verdict": [],
        "summary": None,
        "results": {},
    }
    found = _cells_of(target, record["settings"], plan)
    for key, cell in cells.items():
        own = of_cells.get(key, {})
        if key in found and found[key].get("constants", {}) == own:
            record["results"][key] = found[key]
            click.echo(f"{name}: {key}: already measured")
        else:
            start = time.perf_counter()
            result = cell() | ({"constants": own} if own else {})
            record["results"][key] = result | {"seconds": round(time.perf_counter() - start, 2)}
            click.echo(f"{name}: {key}: {record['results'][key]['seconds']:.1f} s")
        # Cells of an earlier run that come later in the list are kept for then.
        write_json(target, record | {"results": found | record["results"]})
    results: Results = record["results"]
    summary, verdict = conclude(results)
    seconds = round(sum(result["seconds"] for result in results.values()), 1)
    save_figure(picture, draw(results))
    further = {out / f"{name}-{key}.png": drawn for key, drawn in (more or {}).items()}
    for path, drawn in further.items():
        save_figure(path, drawn(results))
    # What an earlier plan measured stays, though it is not concluded from: a narrower plan throws no hours away.
    kept = {"results": results | {key: cell for key, cell in found.items() if key not in results}}
    write_json(target, record | kept | {"finished": True, "seconds": seconds, "verdict": verdict, "summary": summary})
    return Files(target, picture, verdict, tuple(further))


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--out: expected a folder, got {out}, where a file is in the way") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise ValueError(f"--out: expected a folder that can be written to, got {out}")


def _cells_of(target: Path, settings: dict[str, Any], plan: tuple[str, ...]) -> Results:
    """The cells of an earlier run. Those of other settings are refused: an hour's results are not written over."""
    if not target.exists():
        return {}
    try:
        record = json.loads(target.read_text())
        theirs, results = dict(record["settings"]), dict(record["results"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--out: expected results of this experiment in {target}, got something else") from None
    names = [name for name in {**settings, **theirs} if settings.get(name) != theirs.get(name) and name not in plan]
    if names:
        raise ValueError(
            f"--out: expected a folder without results of other settings, got {target}, where {names[0]} is "
            f"{theirs.get(names[0])}, not {settings.get(names[0])}"
        )
    return results


def confidence(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval, by Student's t, of 2 to 10 independent values."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, _T_95[len(values)] * math.sqrt(variance / len(values))


def percent(value: float, reference: float) -> float:
    """The relative difference in percent, rounded as it is told."""
    return round(100 * (value / reference - 1), 2)


def new_axes(
    rows: int,
    columns: int,
    *,
    size: tuple[float, float],  # inches of the whole figure
    title: str,
) -> tuple[Figure, list[Axes]]:
    """A figure with its axes, row by row. No pyplot: nothing global is touched."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e5e7eb", linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(labelsize=8)
        one.xaxis.label.set_size(9)
        one.yaxis.label.set_size(9)
        one.set_title("", fontsize=10)
    return figure, axes


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers, where the data span more than a factor of 3; else it stays as it is."""
    values = [float(y) for line in ax.get_lines() for y in np.ravel(line.get_ydata()) if y > 0]
    if not values or max(values) <= 3 * min(values):
        return
    decades = math.log10(max(values) / min(values))
    ax.set_yscale("log")
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1.1 else (1.0, 2.0, 5.0) if decades < 1.7 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a PNG in one atomic step."""
    replace_file(path, lambda partial: figure.savefig(partial, format="png", dpi=_DPI, facecolor="white"))
