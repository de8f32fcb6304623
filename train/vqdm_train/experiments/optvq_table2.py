"""Table 2 of the OptVQ paper, on real digits: PSNR and code use of plain VQ and OptVQ with the same small autoencoder.

The published setting: images of 32 x 32 pixels, 64 positions, 1024 codes, latents of 8 numbers, l1 and l2 loss, MNIST
and CIFAR-10. Here the data are the 1,797 digits that scikit-learn carries, of 8 x 8 pixels, enlarged to 16 x 16: 16
positions, each of 2 x 2 real pixels, and 256 codes. (Enlarged to 32 x 32, a position is one real pixel: a few codes as
its grey values are then all that can be of use.) A latent is quantised whole, as one code of 8 numbers, and in 4 heads,
as 4 codes of 2 numbers from one codebook, as the configuration of the published code has it. Training:
optvq_training.py.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vqdm_train.experiments.common import Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.optvq_methods import LOOKS, METHODS
from vqdm_train.experiments.optvq_training import (
    CURVES,
    SYSTEMS,
    Training,
    draw_curves,
    draw_histogram,
    draw_strip,
    make_tokenizer,
    open_images,
    picture,
    train,
)
from vqdm_train.model import ModelConfig

__all__ = ["FULL", "PUBLISHED", "QUICK", "Settings", "run"]

# PSNR (of the Y channel) and share of codes used.
PUBLISHED = {
    "MNIST": {"nearest": (9.02, 0.0020), "transport": (34.28, 1.0)},
    "CIFAR-10": {"nearest": (14.57, 0.0010), "transport": (28.78, 1.0)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    image_size: int = 16
    codebook_size: int = 256
    latent_dim: int = 8
    heads: tuple[int, ...] = (1, 4)
    steps: int = 1500
    batch_size: int = 32
    lr: float = 3e-3
    codebook_lr: float = 2e-2
    told_every: int = 30
    repeats: int = 3  # seeds
    shown: int = 16  # held-out digits in the strip
    seed: int = 0


FULL = Settings()
QUICK = Settings(heads=(1,), steps=180, repeats=1)


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {
        _key(method, heads, repeat): partial(_train, settings, method, heads, repeat)
        for repeat in range(settings.repeats)
        for heads in settings.heads
        for method in METHODS
    }
    return measure(
        "optvq-table2",
        out,
        settings,
        cells,
        partial(_conclude, settings),
        partial(_draw, settings),
        plan=("heads", "repeats"),
        more={
            "strip": partial(_draw_strips, settings),
            "curves": partial(_draw_curves, settings),
            "usage": partial(_draw_histograms, settings),
        },
    )


def _key(method: str, heads: int, repeat: int) -> str:
    return f"{SYSTEMS[method]}, {heads} {'head' if heads == 1 else 'heads'}, seed {repeat}"


def _train(settings: Settings, method: str, heads: int, repeat: int) -> dict[str, Any]:
    seed = settings.seed + repeat
    images, held_out = open_images("builtin:digits", settings.image_size, 1)
    network = ModelConfig(network="small", latent_channels=settings.latent_dim)
    tokenizer = make_tokenizer(method, network, settings.codebook_size, channels=1, num_heads=heads, seed=seed)
    training = Training(
        settings.steps, settings.batch_size, settings.lr, settings.codebook_lr, settings.told_every, seed
    )
    result = train(tokenizer, images, held_out, training)
    if repeat == 0:
        digits = torch.stack([held_out[i] for i in range(settings.shown)])
        result |= {"originals": picture(digits), "reconstructions": picture(tokenizer.reconstruct(digits))}
    return {"method": method, "heads": heads, **result}


def _of(settings: Settings, results: Results, method: str, heads: int) -> list[dict[str, Any]]:
    return [results[_key(method, heads, repeat)] for repeat in range(settings.repeats)]


def _mean(cells: list[dict[str, Any]], name: str) -> float:
    return sum(cell[name] for cell in cells) / len(cells)


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict = [], []
    for heads in settings.heads:
        cells = {method: _of(settings, results, method, heads) for method in METHODS}
        row: dict[str, Any] = {"heads": heads}
        for method, runs in cells.items():
            row[SYSTEMS[method]] = {
                name: {"mean": _mean(runs, name), "each": [cell[name] for cell in runs]} for name in ("psnr", "used")
            }
        summary.append(row)
        plain, ours = (cells[method] for method in METHODS)
        leads = [b["psnr"] - a["psnr"] for a, b in zip(plain, ours, strict=True)]
        verdict.append(
            f"{heads} {'head' if heads == 1 else 'heads'}: plain VQ {_mean(plain, 'psnr'):.2f} dB with "
            f"{_mean(plain, 'used'):.2%} of the codes, OptVQ {_mean(ours, 'psnr'):.2f} dB with "
            f"{_mean(ours, 'used'):.2%}; OptVQ leads by {min(leads):+.2f} to {max(leads):+.2f} dB over {len(leads)} "
            f"seeds."
        )
    for name, theirs in PUBLISHED.items():
        told = (f"{SYSTEMS[method]} {theirs[method][0]:.2f} dB with {theirs[method][1]:.2%}" for method in METHODS)
        verdict.append(f"Published, {name}: {', '.join(told)}.")
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    figure, (psnr, used) = new_axes(
        1,
        2,
        size=(11, 4.6),
        title=f"{settings.codebook_size} codes: plain VQ and OptVQ on real digits, and as published",
    )
    groups = [f"digits,\n{heads} {'head' if heads == 1 else 'heads'}" for heads in settings.heads]
    for ax, name, scale in ((psnr, "psnr", 1), (used, "used", 100)):
        for offset, (method, look) in zip((-0.2, 0.2), LOOKS.items(), strict=True):
            for x, heads in enumerate(settings.heads):
                values = [scale * cell[name] for cell in _of(settings, results, method, heads)]
                middle = sum(values) / len(values)
                ax.bar(x + offset, middle, 0.36, color=look.color, label=SYSTEMS[method] if x == 0 else None)
                ax.plot([x + offset] * len(values), values, look.marker, color="black", markersize=3)
                ax.annotate(
                    f"{middle:.4g}", (x + offset, max(values)), (0, 4), textcoords="offset points", ha="center", size=9
                )
            for x, theirs in enumerate(PUBLISHED.values(), len(settings.heads)):
                value = scale * theirs[method][0 if name == "psnr" else 1]
                ax.bar(x + offset, value, 0.36, facecolor="white", edgecolor=look.color, hatch="///", linewidth=1.2)
                ax.annotate(
                    f"{value:.4g}", (x + offset, value), (0, 4), textcoords="offset points", ha="center", size=9
                )
        ax.set_xticks(range(len(groups) + len(PUBLISHED)), [*groups, *(f"{name},\npublished" for name in PUBLISHED)])
        ax.grid(visible=False, axis="x")
        ax.set_ylim(top=1.1 * ax.get_ylim()[1])
    psnr.set_title("PSNR [dB]", fontsize=10)
    used.set_title("codes used [%]", fontsize=10)
    handles, labels = psnr.get_legend_handles_labels()
    handles.append(Line2D([], [], color="black", marker="o", markersize=3, linestyle="none"))
    figure.legend(handles, [*labels, "each seed"], loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw_strips(settings: Settings, results: Results) -> Figure:
    rows = 1 + len(METHODS) * len(settings.heads)
    figure, axes = new_axes(
        rows, 1, size=(12, 1.02 * rows + 0.4), title="Held-out digits and what the tokens keep of them"
    )
    first = results[_key(METHODS[0], settings.heads[0], 0)]
    draw_strip(axes[0], first["originals"], "originals")
    keys = [(method, heads) for heads in settings.heads for method in METHODS]
    for ax, (method, heads) in zip(axes[1:], keys, strict=True):
        cell = results[_key(method, heads, 0)]
        pieces = f"{heads} {'head' if heads == 1 else 'heads'}"
        told = f"{SYSTEMS[method]}, {pieces}: {cell['psnr']:.1f} dB, {cell['used']:.1%} of the codes used"
        draw_strip(ax, cell["reconstructions"], told)
    return figure


def _draw_curves(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(
        len(settings.heads),
        len(CURVES),
        size=(14, 3.2 * len(settings.heads) + 0.8),
        title="Training, plain VQ and OptVQ",
    )
    for row, heads in enumerate(settings.heads):
        cells = {method: results[_key(method, heads, 0)] for method in METHODS}
        draw_curves(axes[len(CURVES) * row : len(CURVES) * (row + 1)], cells)
        axes[len(CURVES) * row].set_ylabel(f"{heads} {'head' if heads == 1 else 'heads'}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _draw_histograms(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(
        len(settings.heads), 2, size=(11, 3.0 * len(settings.heads) + 0.6), title="How often each code is used"
    )
    for row, heads in enumerate(settings.heads):
        for column, method in enumerate(METHODS):
            ax = axes[2 * row + column]
            draw_histogram(ax, results[_key(method, heads, 0)], method)
            ax.set_title(f"{heads} {'head' if heads == 1 else 'heads'}, {ax.get_title()}", fontsize=9.5)
    return figure
