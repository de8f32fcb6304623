"""Pictures of the measurements: for each operator, time by case and implementation on a logarithmic scale.

    python -m bench.plot [--results bench/results] [--out bench/plots]

Reads all <operator>-<machine>-<commit>.jsonl and writes <operator>.png: a panel for each file and number of threads. A
bar says its median, and for the peers how many times ours that is.
"""

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.harness import OURS

Row = dict[str, Any]

GROUP_WIDTH = 0.86  # of the distance from case to case
MANY = 12  # cases in a panel, above which it is wider and names them alone


def panels(files: list[Path], op: str) -> list[tuple[str, list[Row]]]:
    """(title, rows) for each file and number of threads."""
    found = []
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        machine, _, commit = file.stem.removeprefix(f"{op}-").rpartition("-")
        machine = re.sub(r"-\d+-threads$", "", machine).replace("-", " ")
        for threads, part in groupby(rows, key=lambda row: row["threads"]):
            on = "" if rows[0]["device"] == "cuda" else f", {threads} thread{'s' * (threads > 1)}"
            found.append((f"{machine}{on} (commit {commit})", list(part)))
    return found


def draw_panel(axes: Axes, title: str, rows: list[Row], colours: dict[str, Any]) -> None:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = [name for name in colours if any(row["implementation"] == name for row in rows)]
    width = GROUP_WIDTH / len(names)
    lowest = min(row["median_ms"] for row in rows)
    for row in rows:
        place = names.index(row["implementation"]) - (len(names) - 1) / 2
        x = cases.index(row["case"]) + place * width
        axes.bar(x, row["median_ms"], 0.92 * width, bottom=0, color=colours[row["implementation"]])
        ours = row["implementation"] == OURS
        label = _time(row["median_ms"]) if ours else f"× {_three_digits(row['ratio'])}"
        axes.annotate(
            label, (x, row["median_ms"]), (0, 3), textcoords="offset points", rotation=90, ha="center", va="bottom",
            fontsize=8, fontweight="bold" if ours else "normal",
        )  # fmt: skip
    first = {case: next(row for row in rows if row["case"] == case) for case in cases}
    if len(cases) > MANY:  # too many for their sizes to stand side by side
        axes.set_xticks(range(len(cases)), cases, rotation=30, ha="right", fontsize=8)
    else:
        axes.set_xticks(range(len(cases)), [_label(case, row) for case, row in first.items()])
    axes.set_yscale("log")
    highest = max(row["median_ms"] for row in rows)
    axes.set_ylim(lowest / 2, highest * (highest / lowest) ** 0.35)  # room for the labels
    axes.yaxis.set_major_formatter(lambda value, _: _time(value))
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(case: str, row: Row) -> str:
    if not row["K"]:  # no codes: the case says all
        return case.replace(", ", "\n")
    return f"{case}\nN {row['N']:,}  K {row['K']:,}  d {row['d']}"


def _time(milliseconds: float) -> str:
    for unit, size in (("s", 1e3), ("ms", 1.0)):
        if milliseconds >= size:
            return f"{_three_digits(milliseconds / size)} {unit}"
    return f"{_three_digits(1e3 * milliseconds)} µs"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw(op: str, files: list[Path], out: Path) -> Path:
    parts = panels(files, op)
    names = list(dict.fromkeys(row["implementation"] for _, rows in parts for row in rows))
    names.sort(key=lambda name: (name != OURS, name == "reference"))  # ours first, the specification last
    greys = plt.get_cmap("Set2").colors  # type: ignore[attr-defined]
    colours = {name: "#1f4e9c" if name == OURS else greys[i % len(greys)] for i, name in enumerate(names)}
    colours |= {name: "0.8" for name in names if name == "reference"}
    many = max(len({row["case"] for row in rows}) for _, rows in parts) > MANY
    size = (20, 4.2 * len(parts) + 0.7) if many else (12, 3.2 * len(parts) + 0.7)
    figure, grid = plt.subplots(len(parts), 1, figsize=size, squeeze=False)
    for axes, (title, rows) in zip(grid[:, 0], parts, strict=True):
        draw_panel(axes, title, rows, colours)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.suptitle(f"{op}: median time, and how many times ours", x=0.01, y=0.995, ha="left", fontsize=12)
    top = 1 - 0.35 / figure.get_figheight()
    figure.legend(handles, colours, loc="upper left", bbox_to_anchor=(0.01, top), ncols=4, frameon=False, fontsize=9)
    rows_of_legend = -(-len(names) // 4)
    figure.tight_layout(rect=(0, 0, 1, top - 0.2 * rows_of_legend / figure.get_figheight()))
    path = out / f"{op}.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


@click.command(help=__doc__)
@click.option("--results", default="bench/results", type=click.Path(path_type=Path, exists=True))
@click.option("--out", default="bench/plots", type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    files = sorted(results.glob("*.jsonl"))
    if not files:
        raise click.ClickException(f"expected measurements *.jsonl in {results}, found none; run `make bench` first")
    out.mkdir(parents=True, exist_ok=True)
    ops = {file: json.loads(file.read_text().splitlines()[0])["op"] for file in files}
    for op in dict.fromkeys(ops.values()):
        print(draw(op, [file for file in files if ops[file] == op], out))


if __name__ == "__main__":
    main()
