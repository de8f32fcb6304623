"""Every quantizer in the same tokenizer: the demo's, on the built-in photographs, from the same first weights.

One scale of 8 x 8 vectors, about 1024 codes and a few hundred steps for all, but for the multi-scale one, with the
demo's scales. The loss weights are each system's published ones (Wasserstein: the demo's), tables start from
N(0, 0.65^2), the demo's, and nothing is tuned further: the table says what a quantizer does here without care, not
which is the best. Training: tokenizer_training.py.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from vqdm_train.config import Config
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.optvq_training import draw_strip
from vqdm_train.experiments.tokenizer_training import originals, train_tokenizer
from vqdm_train.presets import demo
from vqdm_train.settings import apply_json, parse_settings

__all__ = ["FULL", "METHODS", "PLAIN", "QUICK", "Settings", "run"]

# What makes the demo preset a plain vector quantizer of one scale with the usual loss weights.
PLAIN = (
    "quantizer.kind=vector",
    "quantizer.scales=",
    "quantizer.commitment_weight=0.25",
    "quantizer.wasserstein_weight=0",
    "quantizer.target=features",
)


class Method(NamedTuple):
    """A quantizer, by what `--set` changes of the plain one."""

    settings: tuple[str, ...] = ()
    preset: bool = False  # change the demo preset itself instead


METHODS: dict[str, Method] = {
    "vanilla": Method(),
    "vanilla, rotation trick": Method(("quantizer.gradient=rotation",)),
    "EMA": Method(("quantizer.kind=ema",)),
    # The fair share of a code is one vector a step; RQ-VAE's threshold 1 is for far larger batches.
    "EMA, revival": Method(("quantizer.kind=ema", "quantizer.ema.revive_below=0.1")),
    # Its published anchors are drawn by distance; here they are the closest features.
    "online clustering": Method(("quantizer.kind=online", "quantizer.online.anchors=closest")),
    # The map moves all codes at once: with the others' learning rate of codes, much too far.
    "linear (SimVQ)": Method(("quantizer.kind=linear", "optimizer.codebook_lr=1e-3")),
    "normalised": Method(("quantizer.kind=normalized",)),
    "Wasserstein": Method(("quantizer.scales=",), preset=True),
    "OptVQ": Method(
        (
            "quantizer.kind=sinkhorn",
            "quantizer.sinkhorn.linear_map=false",
            "quantizer.commitment_weight=1",
            "quantizer.codebook_weight=0.25",
        )
    ),
    "OptVQ, 4 heads": Method(
        (
            "quantizer.kind=sinkhorn",
            "quantizer.sinkhorn.linear_map=false",
            "quantizer.commitment_weight=1",
            "quantizer.codebook_weight=0.25",
            "quantizer.num_heads=4",
        )
    ),
    "residual, depth 4": Method(("quantizer.kind=ema", "quantizer.ema.revive_below=0.1", "quantizer.residual_depth=4")),
    "FSQ": Method(
        (
            "quantizer.kind=finite_scalar",
            "quantizer.finite_scalar.levels=8,5,5,5",
            "quantizer.codebook_size=1000",
            "quantizer.init_std=null",
            "model.latent_channels=4",
        )
    ),
    "LFQ": Method(("quantizer.kind=lookup_free", "quantizer.init_std=null", "model.latent_channels=10")),
    "IBQ": Method(("quantizer.kind=index_backprop", "quantizer.commitment_weight=1", "quantizer.codebook_weight=0.25")),
    "multi-scale, Wasserstein": Method(preset=True),
}
_SHOWN = (0.05, 0.4, 0.7, 0.9)  # of the held-out images, in the picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants but those of the demo preset and of METHODS."""

    methods: tuple[str, ...] = tuple(METHODS)
    steps: int = 200
    batch_size: int = 16
    warmup_steps: int = 20
    every: int = 2  # of the held-out images, every so many-th is evaluated
    seed: int = 0


FULL = Settings()
QUICK = Settings(steps=8, batch_size=8, every=12, methods=("vanilla", "EMA, revival", "Wasserstein", "FSQ", "LFQ"))


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    return measure(
        "quantizers",
        out,
        settings,
        {name: partial(_train, settings, name) for name in settings.methods},
        partial(_conclude, settings),
        partial(_draw, settings),
        plan=("methods",),
        constants={name: {"settings": _settings(METHODS[name])} for name in settings.methods},
        more={"strip": partial(_draw_strip, settings)},
    )


def _settings(method: Method) -> list[str]:
    return [*(() if method.preset else PLAIN), *method.settings]


def _config(settings: Settings, method: Method) -> Config:
    config = demo()
    config = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=settings.warmup_steps),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    return apply_json(config, parse_settings(config, _settings(method)))  # of a key set twice, the later one counts


def _train(settings: Settings, name: str) -> dict[str, Any]:
    config = _config(settings, METHODS[name])
    return train_tokenizer(config, _config(settings, Method()), every=settings.every, shown=_SHOWN)


def _conclude(settings: Settings, results: Results) -> Conclusion:
    cells = {name: results[name] for name in settings.methods}
    columns = (
        *("psnr_untrained", "psnr", "ssim", "used", "perplexity", "codebook_size"),
        *("tokens_per_image", "bits_per_image", "step_ms", "quantizer_ms"),
    )
    summary = [{"method": name, **{column: cell[column] for column in columns}} for name, cell in cells.items()]
    gains = {name: cell["psnr"] - cell["psnr_untrained"] for name, cell in cells.items()}
    verdict = [
        f"{name}: {cell['psnr']:.2f} dB after {settings.steps} steps, {cell['psnr_untrained']:.2f} dB untrained "
        f"({gains[name]:+.2f}), {cell['used']:.1%} of {cell['codebook_size']} codes used, C {cell['perplexity']:.0f}, "
        f"{cell['bits_per_image']:.0f} bits an image."
        for name, cell in cells.items()
    ]
    beaten = [name for name, gain in gains.items() if gain <= 0]
    verdict.append(
        f"{len(cells) - len(beaten)} of {len(cells)} quantizers beat their untrained selves"
        + (f"; these do not: {', '.join(beaten)}." if beaten else ".")
    )
    return Conclusion(summary, verdict)


# Pictures -------------------------------------------------------------------------------------------------------------


def _draw(settings: Settings, results: Results) -> Figure:
    """Dots by quantizer: PSNR before and after, use of the codes, and what a step costs."""
    names = settings.methods
    figure, axes = new_axes(
        1,
        4,
        size=(13.5, 0.32 * len(names) + 1.7),
        title=f"Every quantizer in the demo's tokenizer, {settings.steps} steps; held-out photographs",
    )
    rows = range(len(names))
    cells = [results[name] for name in names]

    def dots(index: int, values: list[float], color: str, label: str, marker: str = "o") -> None:
        axes[index].plot(values, rows, marker, color=color, label=label, markersize=6)

    for row, cell in zip(rows, cells, strict=True):
        axes[0].plot([cell["psnr_untrained"], cell["psnr"]], [row, row], color=COLORS[4], linewidth=1)
        axes[0].annotate(f"{cell['psnr']:.1f}", (cell["psnr"], row), (6, -3), textcoords="offset points", fontsize=8)
    dots(0, [cell["psnr_untrained"] for cell in cells], COLORS[4], "untrained", "|")
    dots(0, [cell["psnr"] for cell in cells], COLORS[0], "trained")
    axes[0].set(title="PSNR [dB]")
    axes[0].margins(x=0.12)
    dots(1, [100 * cell["used"] for cell in cells], COLORS[0], "codes used")
    dots(1, [100 * cell["perplexity"] / cell["codebook_size"] for cell in cells], COLORS[1], "C / K", "s")
    axes[1].set(title="codes used, and C / K [%]", xlim=(-3, 103))
    dots(2, [cell["bits_per_image"] for cell in cells], COLORS[2], "bits")
    axes[2].set(title="bits per image", xlim=(0, 1.1 * max(cell["bits_per_image"] for cell in cells)))
    dots(3, [cell["step_ms"] for cell in cells], COLORS[0], "whole step")
    dots(3, [cell["quantizer_ms"] for cell in cells], COLORS[3], "quantizer alone", "D")
    axes[3].set(title="CPU milliseconds of a training step")
    axes[3].set_xscale("log", base=10)
    for index, ax in enumerate(axes):
        ax.set_yticks(list(rows), names if index == 0 else [])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.title.set_fontsize(10)
        if index != 2:
            ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    return figure


def _draw_strip(settings: Settings, results: Results) -> Figure:
    """The same held-out images through every tokenizer, in a grid of strips."""
    columns = 3
    rows = math.ceil((1 + len(settings.methods)) / columns)
    figure, axes = new_axes(
        rows, columns, size=(13.5, 1.25 * rows + 0.4), title="Held-out photographs through every quantizer"
    )
    first = originals(_config(settings, Method()), every=settings.every, shown=_SHOWN)
    draw_strip(axes[0], first, "originals")
    for ax, name in zip(axes[1:], settings.methods, strict=False):
        cell = results[name]
        draw_strip(ax, cell["reconstructions"], f"{name}: {cell['psnr']:.1f} dB, {cell['bits_per_image']:.0f} bits")
    for ax in axes[1 + len(settings.methods) :]:
        ax.set_axis_off()
    return figure
