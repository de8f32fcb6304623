"""Table 3 of the OptVQ paper: loss and code use over codebook sizes, in 64 and in 8 dimensions, of plain VQ and OptVQ.

The published numbers are of VQGAN's network on a 1 % subset of ImageNet, with a perceptual part in the loss. Ours are
of a network of 4-pixel patches, one level of 64 channels, on 32-pixel crops of the built-in photographs, with l1 and l2
alone, and of minutes of training (optvq_training.py): what can be compared is how loss and code use go with the
codebook's size, not their values. One code stands for a latent of d numbers. OptVQ has its linear map on the codes and
plain VQ has none; for `mapped_dims` there is plain VQ with that map too, which differs from OptVQ in the assignment
alone. Loss and PSNR are of the held-out photographs; code use is counted over their tokens and those of more training
crops, since the largest codebook has 16,384 codes.
"""

import dataclasses
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vqdm_train.experiments.common import Conclusion, Files, Results, log_axis, measure, new_axes
from vqdm_train.experiments.optvq_methods import LOOKS, METHODS, handle
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

_MAPPED = "nearest, mapped"
_MAPPED_LOOK: dict[str, Any] = {"color": "#6b7280", "marker": "^", "linestyle": ":"}
_NAMES = {**SYSTEMS, _MAPPED: "plain VQ with OptVQ's map"}
# Reconstruction loss and share of codes used, by d and K.
PUBLISHED: dict[str, dict[int, dict[int, tuple[float, float]]]] = {
    "nearest": {
        64: {128: (1.957, 0.2344), 1024: (2.073, 0.0391), 4096: (1.810, 0.0195), 16384: (2.002, 0.0206)},
        8: {128: (2.254, 0.1875), 1024: (1.916, 0.0293), 4096: (2.009, 0.0171), 16384: (2.099, 0.0020)},
    },
    "transport": {
        64: {128: (1.018, 1.0), 1024: (0.944, 1.0), 4096: (0.903, 1.0), 16384: (0.882, 1.0)},
        8: {128: (0.971, 1.0), 1024: (0.848, 1.0), 4096: (0.808, 1.0), 16384: (0.805, 1.0)},
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    dims: tuple[int, ...] = (64, 8)
    mapped_dims: tuple[int, ...] = (8,)
    codebook_sizes: tuple[int, ...] = (128, 1024, 4096, 16384)
    image_size: int = 32
    steps: int = 200
    batch_size: int = 16  # 1,024 tokens
    lr: float = 2e-3
    codebook_lr: float = 2e-2
    told_every: int = 10
    held_out_every: int = 1  # of the 1,323 held-out crops
    counted_batches: int = 100
    shown: int = 12  # held-out crops in the strip
    shown_dim: int = 8
    shown_size: int = 4096
    seed: int = 0


FULL = Settings()
QUICK = Settings(
    dims=(8,),
    mapped_dims=(),
    codebook_sizes=(128, 1024),
    steps=25,
    told_every=5,
    held_out_every=10,
    counted_batches=10,
    shown_size=1024,
)


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {
        _key(method, d, K): partial(_train, settings, method, d, K)
        for K in settings.codebook_sizes
        for d in settings.dims
        for method in _methods(settings, d)
    }
    return measure(
        "optvq-table3",
        out,
        settings,
        cells,
        partial(_conclude, settings),
        partial(_draw, settings),
        plan=("dims", "mapped_dims", "codebook_sizes"),
        more={
            "strip": partial(_draw_strip, settings),
            "curves": partial(_draw_curves, settings),
            "usage": partial(_draw_histograms, settings),
        },
    )


def _methods(settings: Settings, d: int) -> tuple[str, ...]:
    return (*METHODS, _MAPPED) if d in settings.mapped_dims else METHODS


def _key(method: str, d: int, K: int) -> str:
    return f"{_NAMES[method]}, d {d}, K {K}"


def _train(settings: Settings, method: str, d: int, K: int) -> dict[str, Any]:
    images, held_out = open_images("builtin:photos", settings.image_size, 3, every=settings.held_out_every)
    network = ModelConfig(
        patch_size=4,
        base_channels=64,
        channel_multipliers=(1,),
        num_res_blocks=1,
        latent_channels=d,
        attention=False,
        mid_attention=False,
        norm_groups=8,
    )
    assignment = "transport" if method == "transport" else "nearest"
    mapped = method != "nearest"
    tokenizer = make_tokenizer(assignment, network, K, channels=3, linear_map=mapped, seed=settings.seed)
    training = Training(
        settings.steps, settings.batch_size, settings.lr, settings.codebook_lr, settings.told_every, settings.seed
    )
    result = train(tokenizer, images, held_out, training, counted_batches=settings.counted_batches)
    if (d, K) == (settings.shown_dim, settings.shown_size):
        spread = torch.linspace(0, len(held_out) - 1, settings.shown).long()
        crops = torch.stack([held_out[int(i)] for i in spread])
        result |= {"originals": picture(crops), "reconstructions": picture(tokenizer.reconstruct(crops))}
    return {"method": method, "d": d, "K": K, **result}


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict = [], []
    for cell in results.values():
        theirs = PUBLISHED.get(cell["method"], {}).get(cell["d"], {}).get(cell["K"])
        row = {name: cell[name] for name in ("method", "d", "K", "loss", "psnr", "used", "perplexity")}
        summary.append(row | {"published": theirs and dict(zip(("loss", "used"), theirs, strict=True))})
    for d in settings.dims:
        for method in _methods(settings, d):
            cells = [results[_key(method, d, K)] for K in settings.codebook_sizes]
            used = ", ".join(f"{cell['used']:.2%}" for cell in cells)
            loss = ", ".join(f"{cell['loss']:.4f}" for cell in cells)
            falls = all(b["loss"] < a["loss"] for a, b in pairwise(cells))
            verdict.append(
                f"d = {d}, {_NAMES[method]}: uses {used} of {', '.join(map(str, settings.codebook_sizes))} codes; its "
                f"loss is {loss}, which {'falls' if falls else 'does not fall'} with every larger codebook."
            )
        gains = [
            results[_key("transport", d, K)]["psnr"] - results[_key("nearest", d, K)]["psnr"]
            for K in settings.codebook_sizes
        ]
        verdict.append(f"d = {d}: OptVQ leads by {', '.join(f'{gain:+.2f}' for gain in gains)} dB.")
    tokens = min(cell["num_tokens"] for cell in results.values())
    verdict.append(
        f"Code use is of {tokens} tokens, {tokens / max(settings.codebook_sizes):.0f} for each of the most codes."
    )
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    columns = len(settings.dims)
    figure, axes = new_axes(
        2,
        2 * columns,
        size=(6.6 * columns, 6.8),
        title="Loss and code use over the codebook's size: ours on small crops, and as published on ImageNet",
    )
    for row, (name, label) in enumerate((("loss", "loss"), ("used", "codes used [%]"))):
        for column, d in enumerate(settings.dims):
            ours, theirs = axes[2 * columns * row + 2 * column : 2 * columns * row + 2 * column + 2]
            for method, look in LOOKS.items():
                cells = [results[_key(method, d, K)] for K in settings.codebook_sizes]
                values = [(100 if name == "used" else 1) * cell[name] for cell in cells]
                ours.plot(
                    settings.codebook_sizes,
                    values,
                    look.line,
                    color=look.color,
                    marker=look.marker,
                    label=SYSTEMS[method],
                )
                published = PUBLISHED[method].get(d, {})
                values = [(100 * pair[1] if name == "used" else pair[0]) for pair in published.values()]
                theirs.plot(
                    list(published), values, look.line, color=look.color, marker=look.marker, markerfacecolor="white"
                )
            if d in settings.mapped_dims:
                cells = [results[_key(_MAPPED, d, K)] for K in settings.codebook_sizes]
                values = [(100 if name == "used" else 1) * cell[name] for cell in cells]
                ours.plot(settings.codebook_sizes, values, **_MAPPED_LOOK)
            for ax, of in ((ours, "ours"), (theirs, "published")):
                ax.set_xscale("log", base=2)
                sizes = settings.codebook_sizes if of == "ours" else list(PUBLISHED["nearest"].get(d, {}))
                ax.set_xticks(sizes, [str(size) for size in sizes])
                ax.set_title(f"{label}, d = {d}, {of}", fontsize=10)
                ax.set_xlabel("K, codes")
                if name == "used":
                    log_axis(ax)
    handles = [
        *(handle(method, name) for method, name in SYSTEMS.items()),
        *(handle(method, f"{name}, published", filled=False) for method, name in SYSTEMS.items()),
        Line2D([], [], label=_NAMES[_MAPPED], **_MAPPED_LOOK),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure


def _shown(settings: Settings, results: Results) -> dict[str, dict[str, Any]]:
    return {method: results[_key(method, settings.shown_dim, settings.shown_size)] for method in METHODS}


def _draw_strip(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(
        3, 1, size=(12, 4.0), title=f"Held-out crops and what {settings.shown_size} codes keep of them"
    )
    cells = _shown(settings, results)
    draw_strip(axes[0], cells["nearest"]["originals"], "originals")
    for ax, (method, cell) in zip(axes[1:], cells.items(), strict=True):
        told = f"{SYSTEMS[method]}, d = {cell['d']}: {cell['psnr']:.1f} dB, {cell['used']:.1%} of the codes used"
        draw_strip(ax, cell["reconstructions"], told)
    return figure


def _draw_curves(settings: Settings, results: Results) -> Figure:
    title = f"Training, K = {settings.shown_size}, d = {settings.shown_dim}"
    figure, axes = new_axes(1, len(CURVES), size=(14, 3.8), title=title)
    draw_curves(axes, _shown(settings, results))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _draw_histograms(settings: Settings, results: Results) -> Figure:
    sizes = settings.codebook_sizes
    figure, axes = new_axes(
        2, len(sizes), size=(3.9 * len(sizes), 6.2), title=f"How often each code is used, d = {settings.shown_dim}"
    )
    for row, method in enumerate(METHODS):
        for column, K in enumerate(sizes):
            ax = axes[len(sizes) * row + column]
            draw_histogram(ax, results[_key(method, settings.shown_dim, K)], method)
            ax.set_title(f"K = {K}, {ax.get_title()}", fontsize=8.5)
    return figure
