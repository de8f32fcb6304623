"""One self-contained HTML page about one run or several side by side: `write_report`.

The page holds everything itself (images as data URIs, charts as inline SVG, no scripts) and follows the reader's light
or dark theme. Its frame and style are report.html; report_runs.py reads the runs, report_training.py tells how training
went, and report_charts.py draws.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from vqdm_cuda import __version__
from vqdm_train.files import replace_file
from vqdm_train.report_charts import code_use_chart
from vqdm_train.report_runs import Run, read_runs
from vqdm_train.report_training import chip, training_section

__all__ = ["write_report"]


class Metric(NamedTuple):
    """A row of the metrics table. `better` is "higher", "lower" or "" where neither is better as such."""

    key: str
    label: str
    unit: str
    better: str
    format: str
    what: str


_METRICS = (
    Metric("psnr_rgb", "PSNR, RGB", "dB", "higher", ".2f", "mean over images, range 0 to 1"),
    Metric("psnr_y", "PSNR, Y", "dB", "higher", ".2f", "BT.601 luma, 16 to 235, peak 255"),
    Metric("ssim_rgb", "SSIM, RGB", "", "higher", ".4f", "7 × 7 window, mean of three channels"),
    Metric("ssim_y", "SSIM, Y", "", "higher", ".4f", "7 × 7 window, BT.601 luma"),
    Metric("sharpness", "sharpness", "", "", ".3f", "gradients of Y, of the reconstructions over the originals'"),
    Metric("lpips_alex", "LPIPS, AlexNet", "", "lower", ".4f", "perceptual distance"),
    Metric("lpips_vgg", "LPIPS, VGG", "", "lower", ".4f", "perceptual distance"),
    Metric("rfid", "rFID", "", "lower", ".2f", "distance of the sets of images"),
    Metric("quantization_error", "quantization error", "", "", ".4g", "mean squared distance of a feature to its code"),
    Metric("utilization", "codes used", "%", "higher", ".1f", "by all evaluated images together"),
    Metric(
        "perplexity",
        "perplexity",
        "codes",
        "higher",
        ",.1f",
        "effective number of codes",
    ),
    Metric("codebook_size", "codebook size", "codes", "", ",d", ""),
    Metric("tokens_per_image", "tokens per image", "", "", ",d", ""),
    Metric("bits_per_image", "bits per image", "bits", "", ",.0f", "tokens times log2 of the codebook size"),
    Metric("num_images", "images measured", "", "", ",d", ""),
    Metric("num_tokens", "tokens measured", "", "", ",d", ""),
    Metric("protocol", "protocol", "", "", "s", ""),
)


def write_report(
    run_dirs: Sequence[Path],
    out: Path,
) -> None:
    """Write the page about these run directories to `out`, in one step: a reader sees the old page or the new one.

    A run that is still training, or was not evaluated, is shown as far as it is. Raises ValueError where a folder is no
    run directory, is given twice, or holds a file that does not parse; then nothing is written.
    """
    runs = read_runs([Path(folder) for folder in run_dirs])
    page = Template(files("vqdm_train").joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(_heading(runs)),
        heading=escape(_heading(runs)),
        introduction=_introduction(runs),
        cards=_cards(runs),
        sections="\n".join(filter(None, (section(runs) for section in _SECTIONS))),
        version=escape(__version__),
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, lambda partial: partial.write_text(page, encoding="utf-8"))


# The head of the page ------------------------------------------------------------------------------------------------


def _heading(runs: list[Run]) -> str:
    names = [run.name for run in runs]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _introduction(runs: list[Run]) -> str:
    data = sorted({str(run.config["data.path"]) for run in runs if "data.path" in run.config})
    what = f"{_count(len(runs), 'image tokenizer')}" + (f" trained on {', '.join(data)}" if data else "")
    measured = {(run.metrics.get("num_images"), run.metrics.get("num_tokens")) for run in runs if run.metrics}
    if len(measured) == 1:
        images, tokens = measured.pop()
        if isinstance(images, int) and isinstance(tokens, int):
            what += f"; measured on {images:,} held-out images ({tokens:,} tokens)"
    return escape(what + ".")


def _cards(runs: list[Run]) -> str:
    return f'<div class="runs">{"".join(_card(run, i) for i, run in enumerate(runs))}</div>'


def _card(run: Run, i: int) -> str:
    steps = f"{run.stats[-1]['step']:,} steps logged" if run.stats else "no step logged yet"
    if not run.metrics:
        body = '<p class="note">Not evaluated yet.</p>'
    else:
        keys = ("psnr_rgb", "utilization", "perplexity")
        shown = [metric for key in keys for metric in _METRICS if metric.key == key]
        body = '<dl class="figures">' + "".join(
            f"<div><dt>{metric.label}</dt><dd>{_format(metric, run.metrics.get(metric.key))} "
            f"<small>{metric.unit}</small></dd></div>"
            for metric in shown
        )
        body += "</dl>"
    return f'<section class="card"><h3>{chip(i)}{escape(run.name)}</h3>{body}<p class="note">{steps}</p></section>'


# Sections ------------------------------------------------------------------------------------------------------------


def _metrics_section(runs: list[Run]) -> str:
    if not any(run.metrics for run in runs):
        return ""
    comparable = len({(run.metrics.get("protocol"), run.metrics.get("num_images")) for run in runs if run.metrics}) == 1
    head = "".join(f"<th>{chip(i)}{escape(run.name)}</th>" for i, run in enumerate(runs))
    rows = []
    for metric in _METRICS:
        values = [run.metrics.get(metric.key) for run in runs]
        best = _best(metric, values) if comparable and len(runs) > 1 else None
        cells = "".join(_metric_cell(metric, run, value, best) for run, value in zip(runs, values, strict=True))
        label = metric.label + (f" ({metric.unit})" if metric.unit else "")
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]
        rows.append(f'<tr><th>{label}{arrow}</th>{cells}<td class="what">{metric.what}</td></tr>')
    warning = (
        ""
        if comparable
        else '<p class="warning">These runs were measured by different protocols or on different images: '
        "their metrics do not compare.</p>"
    )
    bold = " The best value is bold." if comparable and len(runs) > 1 else ""
    return (
        '<section id="metrics"><h2>Metrics</h2>'
        f'<p class="note">On held-out images. ↑ higher is better, ↓ lower is better.{bold}</p>'
        f'{warning}<div class="scroll"><table><thead><tr><th></th>{head}<th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _metric_cell(metric: Metric, run: Run, value: object, best: object) -> str:
    if value is not None:
        kind = "best" if best is not None and value == best else "value"
        return f'<td class="{kind}">{_format(metric, value)}</td>'
    skipped = run.metrics.get("skipped")
    reason = skipped.get(metric.key) if isinstance(skipped, dict) else None
    reason = reason or ("not measured" if run.metrics else "not evaluated yet")
    return f'<td class="reason">{escape(str(reason))}</td>'


def _samples_section(runs: list[Run]) -> str:
    shown = [(i, run) for i, run in enumerate(runs) if run.samples]
    if not shown:
        return ""
    last = "".join(_sample(run, i, *run.samples[-1]) for i, run in shown)
    earlier = "".join(_sample(run, i, step, png) for i, run in shown for step, png in _spread(run.samples[:-1], 4))
    folded = f'<details><summary>Earlier in training</summary><div class="grids">{earlier}</div></details>'
    return (
        '<section id="samples"><h2>Reconstructions</h2>'
        '<p class="note">Held-out images: the originals, what comes back from their tokens, and four times the '
        "difference around grey.</p>"
        f'<div class="grids">{last}</div>{folded if earlier else ""}</section>'
    )


def _sample(run: Run, i: int, step: int, png: bytes) -> str:
    name = escape(run.name)
    data = base64.b64encode(png).decode()
    return (
        f"<figure><figcaption>{chip(i)}{name}, step {step:,}</figcaption>"
        f'<img src="data:image/png;base64,{data}" alt="Originals above reconstructions, {name}, step {step}"></figure>'
    )


def _code_use_section(runs: list[Run]) -> str:
    if not any(run.counts for run in runs):
        return ""
    items = []
    for i, run in enumerate(runs):
        used, total = sum(count > 0 for count in run.counts), sum(run.counts)
        if not total:
            items.append(f"<li>{chip(i)}{escape(run.name)}: not counted yet</li>")
            continue
        items.append(
            f"<li>{chip(i)}{escape(run.name)}: {used:,} of {len(run.counts):,} codes used "
            f"({100 * used / len(run.counts):.1f} %); the most used one is {100 * max(run.counts) / total:.2f} % "
            f"of {total:,} tokens</li>"
        )
    return (
        '<section id="codes"><h2>Use of the codes</h2>'
        '<p class="note">How often each code stands for a piece of the held-out images, sorted. A line ends at the '
        "last code that is used at all. Dashed: every code used alike.</p>"
        f'<ul class="legend">{"".join(items)}</ul>'
        f'<figure class="wide">{code_use_chart([run.counts for run in runs])}</figure></section>'
    )


def _config_section(runs: list[Run]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    texts = {key: [_plain(run.config, key) for run in runs] for key in keys}
    differing = [key for key in keys if len(set(texts[key])) > 1]
    common = [key for key in keys if key not in differing]
    parts = []
    if len(runs) > 1:
        said = f"{_count(len(differing), 'value')} {'differs' if len(differing) == 1 else 'differ'} between the runs"
        parts.append(f'<p class="note">{said}{", highlighted." if differing else "."}</p>')
    if differing:
        head = "".join(f"<th>{chip(i)}{escape(run.name)}</th>" for i, run in enumerate(runs))
        rows = "".join(_config_row(key, texts[key], "differs") for key in differing)
        parts.append(_config_table(f"<tr><th></th>{head}</tr>", rows))
    if common:
        rows = "".join(_config_row(key, texts[key][:1], "") for key in common)
        label = "What all runs share" if len(runs) > 1 else "All values"
        parts.append(f"<details><summary>{label} ({len(common)})</summary>{_config_table('', rows)}</details>")
    return f'<section id="config"><h2>Configuration</h2>{"".join(parts)}</section>'


def _config_row(key: str, texts: list[str], kind: str) -> str:
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    return f'<tr class="{kind}"><td>{escape(key)}</td>{cells}</tr>'


def _config_table(head: str, rows: str) -> str:
    return f'<div class="scroll"><table class="config"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


_SECTIONS: tuple[Callable[[list[Run]], str], ...] = (
    _metrics_section,
    _samples_section,
    _code_use_section,
    training_section,
    _config_section,
)


# Small pieces --------------------------------------------------------------------------------------------------------


def _format(metric: Metric, value: Any) -> str:
    """A value as the table shows it; whatever is no number of the expected kind is shown as it is, escaped."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else escape(str(value))
    if not math.isfinite(value):
        return escape(str(value)).replace("inf", "∞")
    if metric.unit == "%":
        value = 100 * value
    if metric.format.endswith("d"):
        return format(round(value), metric.format)
    return format(value, metric.format)


def _best(metric: Metric, values: list[Any]) -> float | None:
    """The best number of a row; None where none is better than another."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and not math.isnan(v)]
    if not metric.better or len(set(numbers)) < 2:
        return None
    return max(numbers) if metric.better == "higher" else min(numbers)


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spread, first and last included."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _plain(config: dict[str, Any], key: str) -> str:
    """A config value as text; an absent one is told from one that says null."""
    if key not in config:
        return "(absent)"
    value = config[key]
    return value if isinstance(value, str) else json.dumps(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
