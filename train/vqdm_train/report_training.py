"""How training went, as a report tells it: curves of everything that was logged, by what it belongs to."""

import math
from html import escape

from vqdm_train.curve_groups import GROUPS, group_of, part_of
from vqdm_train.report_charts import NUM_COLORS, Line, curve_chart, part_chart
from vqdm_train.report_runs import Run

__all__ = ["chip", "training_section"]

_LABELS = {
    "loss": "loss, all terms together",
    "psnr_rgb": "PSNR of training batches, dB",
    "utilization": "codes used since the last logged step",
    "perplexity": "perplexity, codes",
    "eval_psnr_rgb": "PSNR, RGB, dB",
    "eval_ssim_rgb": "SSIM, RGB",
    "eval_sharpness": "sharpness",
    "discriminator": "loss of the discriminator",
    "logits_real": "logits of the discriminator: images; dashed, reconstructions",
    "adaptive_weight": "adaptive weight of the adversarial loss",
    "gradient": "norm of the gradient",
    "codebook_gradient": "norm of the gradient to the codebook",
    "discriminator_gradient": "norm of the gradient of the discriminator",
    "lr": "learning rate",
    "images_per_second": "images per second",
    "data_wait": "seconds per step spent waiting for images",
    "data_wait_share": "part of the time spent waiting for images",
    "tokens": "tokens since the last logged step",
    "peak_memory_gib": "largest memory held so far, GiB",
}
_HEADINGS = {
    "held_out": "On held-out images",
    "losses": "Terms of the loss",
    "discriminator": "Discriminator",
    "gradients": "Gradients",
}
_BESIDE = {"logits_real": "logits_fake"}  # two keys that share a chart, the second dashed
_LINEAR = ("psnr_rgb", "eval_psnr_rgb", "eval_ssim_rgb", "utilization", "logits_real", "logits_fake")
_PERCENT = ("utilization", "data_wait_share")
_CRITERIA = (("utilization", "codes used"), ("perplexity", "perplexity, codes"))


def chip(i: int) -> str:
    """The mark in a run's colour."""
    return f'<span class="chip" style="--color: var(--series-{i % NUM_COLORS})"></span>'


def training_section(runs: list[Run]) -> str:
    """The section, or nothing where no run has logged a number. A run is in the charts of what it logged."""
    logged = dict.fromkeys(key for run in runs for row in run.stats for key in row if key != "step")
    grouped: dict[str, list[str]] = {group: [] for group in GROUPS}
    for key in logged:
        if any(run.curve(key)[0] for run in runs):
            grouped[group_of(key)].append(key)
    if not any(grouped.values()):
        return ""
    parts = [_charts(runs, grouped["overview"])]
    for group, heading in _HEADINGS.items():
        if grouped[group]:
            parts.append(f"<h3>{heading}</h3>{_charts(runs, grouped[group])}")
    parts += _codes(runs, grouped["codes"])
    if grouped["speed"]:
        parts.append(f"<details><summary>Schedule and speed</summary>{_charts(runs, grouped['speed'])}</details>")
    return (
        '<section id="training"><h2>Training</h2>'
        '<p class="note">Values of training batches. Where a curve is long, the thick line is the running mean over '
        f"a fortieth of it to either side.</p>{_legend(runs)}{''.join(parts)}</section>"
    )


def _legend(runs: list[Run]) -> str:
    items = "".join(f"<li>{chip(i)}{escape(run.name)}</li>" for i, run in enumerate(runs))
    return f'<ul class="legend">{items}</ul>' if len(runs) > 1 else ""


def _charts(runs: list[Run], keys: list[str]) -> str:
    figures = []
    for key in keys:
        if key in _BESIDE.values() and any(first in keys for first, second in _BESIDE.items() if second == key):
            continue  # stands in the other's chart
        lines = [Line(*run.curve(key), color=i) for i, run in enumerate(runs)]
        if key in _BESIDE:
            lines += [Line(*run.curve(_BESIDE[key]), color=i, dashed=True) for i, run in enumerate(runs)]
        linear = key in _LINEAR or group_of(key) == "speed"
        chart = curve_chart(lines, log=not linear, percent=key in _PERCENT, smooth=key != "lr")
        figures.append(_figure(escape(_LABELS.get(key, key)), chart))
    return f'<div class="charts">{"".join(figures)}</div>'


def _codes(runs: list[Run], keys: list[str]) -> list[str]:
    """For scales, heads and depths: the last logged values of all runs side by side, then each run's over time."""
    structures: dict[str, set[str]] = {}
    for key in keys:
        part = part_of(key)
        if part:
            structures.setdefault(part[1], set()).add(part[2])
    return [
        f"<h3>Use of the codes, by {word}</h3>{_codes_by(runs, word, sorted(names, key=_size))}"
        for word, names in structures.items()
    ]


def _codes_by(runs: list[Run], word: str, names: list[str]) -> str:
    figures = []
    for criterion, label in _CRITERIA:
        curves = [[run.curve(f"{criterion}_{word}_{name}") for name in names] for run in runs]
        if not any(values for of_run in curves for _, values in of_run):
            continue
        last = [[values[-1] if values else math.nan for _, values in of_run] for of_run in curves]
        caption = f"{label}, by {word}, in the last logged steps"
        figures.append(_figure(caption, part_chart(names, last, percent=criterion in _PERCENT)))
        for i, (run, of_run) in enumerate(zip(runs, curves, strict=True)):
            if not any(values for _, values in of_run):
                continue
            lines = [
                Line(*curve, color=i, opacity=0.25 + 0.75 * (j + 1) / len(names)) for j, curve in enumerate(of_run)
            ]
            chart = curve_chart(lines, log=criterion == "perplexity", percent=criterion in _PERCENT)
            caption = f"{chip(i)}{escape(run.name)}: {label}; the first {word} is palest"
            figures.append(_figure(caption, chart))
    return f'<div class="charts">{"".join(figures)}</div>'


def _figure(
    caption: str,  # HTML
    chart: str,
) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _size(name: str) -> tuple[int, ...]:
    """4 -> (4,), 4x8 -> (4, 8): an order of numbers, not of letters."""
    return tuple(int(side) for side in name.split("x"))
