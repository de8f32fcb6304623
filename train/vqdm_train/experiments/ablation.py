"""Table 3 and Fig. 10 of the first Wasserstein VQ paper: the tokenizer with and without matching, over codebook sizes.

The published setting: ImageNet, 256 x 256 pixels, 10 scales, K = 16384, 50000 and 100000, weight of L_W 0.3 or 0. Here:
the demo's tokenizer (64 x 64 pixels, 6 scales) on the built-in photographs, smaller codebooks, the demo's weight or 0,
300 steps. Training: tokenizer_training.py. U and C are of all held-out images together.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vqdm_train.config import Config
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.optvq_training import draw_strip
from vqdm_train.experiments.tokenizer_training import originals, train_tokenizer
from vqdm_train.presets import demo

__all__ = ["FULL", "PUBLISHED", "QUICK", "Settings", "run"]

# Of Table 3, by K: U in percent, PSNR, SSIM in percent, without and with matching.
PUBLISHED = {
    16384: {"used": (89.3, 100), "psnr": (23.97, 24.43), "ssim": (61.6, 63.5)},
    50000: {"used": (73.5, 100), "psnr": (24.23, 24.67), "ssim": (62.6, 64.4)},
    100000: {"used": (61.8, 100), "psnr": (24.30, 24.76), "ssim": (62.8, 64.8)},
}
# By whether there is matching.
NAMES = {False: "without matching", True: "with matching"}
_SHOWN = (0.05, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.97)  # of the held-out images, in the strip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants but those of the demo preset."""

    codebook_sizes: tuple[int, ...] = (256, 1024, 4096)
    steps: int = 300
    batch_size: int = 16
    warmup_steps: int = 20
    every: int = 2  # of the held-out images, every so many-th is evaluated
    seed: int = 0


FULL = Settings()
QUICK = Settings(codebook_sizes=(1024,), steps=12, batch_size=8, every=12)


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {
        _key(K, matching): partial(_train, settings, K, matching) for K in settings.codebook_sizes for matching in NAMES
    }
    return measure(
        "ablation",
        out,
        settings,
        cells,
        partial(_conclude, settings),
        partial(_draw, settings),
        plan=("codebook_sizes",),
        more={"strip": partial(_draw_strip, settings)},
    )


def _key(K: int, matching: bool) -> str:
    return f"K = {K}, {NAMES[matching]}"


def _config(settings: Settings, K: int, matching: bool) -> Config:
    config = demo()
    weight = config.quantizer.wasserstein_weight if matching else 0.0
    return dataclasses.replace(
        config,
        quantizer=dataclasses.replace(config.quantizer, codebook_size=K, wasserstein_weight=weight),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=settings.warmup_steps),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _train(settings: Settings, K: int, matching: bool) -> dict[str, Any]:
    config = _config(settings, K, matching)
    return train_tokenizer(config, config, every=settings.every, shown=_SHOWN)


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict = [], []
    for K in settings.codebook_sizes:
        without, with_ = (results[_key(K, matching)] for matching in NAMES)
        row: dict[str, Any] = {"K": K, "num_tokens": with_["num_tokens"]}
        for name in ("used", "perplexity", "psnr", "ssim", "error"):
            row[name] = {"without": without[name], "with": with_[name]}
        summary.append(row)
        verdict.append(
            f"K = {K}: matching takes U from {without['used']:.1%} to {with_['used']:.1%}, C from "
            f"{without['perplexity']:.0f} to {with_['perplexity']:.0f}, PSNR from {without['psnr']:.2f} to "
            f"{with_['psnr']:.2f} dB ({with_['psnr'] - without['psnr']:+.2f}), SSIM from {without['ssim']:.3f} to "
            f"{with_['ssim']:.3f} ({with_['ssim'] - without['ssim']:+.3f})."
        )
    better = {
        name: sum(row[name]["with"] > row[name]["without"] for row in summary)
        for name in ("used", "perplexity", "psnr", "ssim")
    }
    count = len(summary)
    verdict.append(
        f"Of {count} codebook sizes, matching is better in U at {better['used']}, in C at {better['perplexity']}, in "
        f"PSNR at {better['psnr']} and in SSIM at {better['ssim']}; published: in U, PSNR (by 0.44 to 0.46 dB) and "
        "SSIM at all three."
    )
    return Conclusion(summary, verdict)


# Pictures -------------------------------------------------------------------------------------------------------------


def _draw(settings: Settings, results: Results) -> Figure:
    """U, PSNR and SSIM, ours over those of Table 3, and C of ours."""
    figure, axes = new_axes(
        2,
        4,
        size=(13.5, 6.4),
        title="With and without matching: the demo's tokenizer on held-out photographs, and Table 3 (ImageNet)",
    )
    panels = (("used", 100, "U [%]"), ("perplexity", 1, "C"), ("psnr", 1, "PSNR [dB]"), ("ssim", 100, "SSIM [%]"))
    for column, (name, scale, title) in enumerate(panels):
        ours = {
            K: tuple(scale * results[_key(K, matching)][name] for matching in NAMES) for K in settings.codebook_sizes
        }
        _bars(axes[column], ours, whole=name in ("used", "perplexity"))
        axes[column].set_title(f"{title}, here", fontsize=10)
        if name == "perplexity":
            continue
        published = {K: values[name] for K, values in PUBLISHED.items()}
        _bars(axes[4 + column], published, whole=name == "used", hatch="///")
        axes[4 + column].set_title(f"{title}, published", fontsize=10)
    axes[5].set_axis_off()
    axes[5].text(0.5, 0.5, "Table 3 does not\nstate C", ha="center", va="center", fontsize=9, color=COLORS[4])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _bars(ax: Any, values: dict[int, tuple[float, float]], *, whole: bool, hatch: str | None = None) -> None:
    """Pairs of bars, without and with matching; `whole` ones start at 0, others near the values if far from it."""
    for offset, color, index, name in zip((-0.2, 0.2), (COLORS[4], COLORS[0]), (0, 1), NAMES.values(), strict=True):
        heights = [pair[index] for pair in values.values()]
        face = "white" if hatch else color
        ax.bar(
            [x + offset for x in range(len(values))],
            heights,
            0.36,
            facecolor=face,
            edgecolor=color,
            hatch=hatch,
            label=name,
        )
        for x, height in enumerate(heights):
            ax.annotate(
                f"{height:.4g}", (x + offset, height), (0, 3), textcoords="offset points", ha="center", fontsize=7.5
            )
    every = [value for pair in values.values() for value in pair]
    low, high = min(every), max(every)
    bottom = 0.0 if whole or not 0.6 * high < low < high else max(low - 0.6 * (high - low), 0.0)
    ax.set_ylim(bottom, high + 0.12 * (high - bottom))
    ax.set_xticks(range(len(values)), [f"K = {K}" for K in values])
    ax.grid(visible=False, axis="x")


def _draw_strip(settings: Settings, results: Results) -> Figure:
    """As Fig. 10: originals, then what each tokenizer makes of them."""
    rows = [(K, matching) for K in settings.codebook_sizes for matching in NAMES]
    figure, axes = new_axes(
        1 + len(rows), 1, size=(10, 1.5 * (1 + len(rows)) + 0.4), title="Held-out photographs and their reconstructions"
    )
    draw_strip(axes[0], originals(_config(settings, *rows[0]), every=settings.every, shown=_SHOWN), "originals")
    for ax, (K, matching) in zip(axes[1:], rows, strict=True):
        cell = results[_key(K, matching)]
        draw_strip(
            ax, cell["reconstructions"], f"{_key(K, matching)}: {cell['psnr']:.2f} dB, {cell['used']:.1%} of the codes"
        )
    return figure
