"""Theorems 1 and 2 of the Wasserstein VQ paper, measured over growing N and K: see theorem1.py and theorem2.py."""

import dataclasses
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from vqdm_train.experiments import theorem1, theorem2
from vqdm_train.experiments.common import Conclusion, Files, Results, measure, new_axes
from vqdm_train.experiments.powers import LAWS

__all__ = ["FULL", "QUICK", "Settings", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    dims: tuple[int, ...] = (1, 2, 4, 8)
    # Theorem 1.
    use_codebook_size: int = 256
    use_features: tuple[int, ...] = tuple(4**i for i in range(4, 9))
    error_codebook_sizes: tuple[int, ...] = tuple(4**i for i in range(2, 7))
    error_features: int = 16384
    repeats: int = 5
    # Theorem 2, codes drawn from powers of the density.
    drawn_codebook_sizes: tuple[int, ...] = (64, 512, 2048)
    drawn_features: int = 4096
    drawn_repeats: int = 5
    # Theorem 2, optimal codes.
    optimal_codebook_sizes: dict[int, tuple[int, ...]] = dataclasses.field(  # by d
        default_factory=lambda: {1: (4, 8, 16, 32)}
    )
    optimal_features: int = 8192
    optimal_iterations: int = 200
    optimal_repeats: int = 3
    seed: int = 0


FULL = Settings()
QUICK = Settings(
    dims=(1, 2, 8),
    use_features=tuple(4**i for i in range(4, 8)),
    error_codebook_sizes=tuple(4**i for i in range(2, 6)),
    error_features=4096,
    repeats=3,
    drawn_codebook_sizes=(64, 512),
    drawn_features=4096,
    drawn_repeats=5,
    optimal_codebook_sizes={1: (4, 16), 2: (16, 64)},
    optimal_features=4096,
    optimal_iterations=50,
    optimal_repeats=2,
)


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {
        theorem1.key(codes, d): partial(
            theorem1.measure_use_and_error,
            codes,
            d,
            codebook_size=settings.use_codebook_size,
            nums_features=settings.use_features,
            codebook_sizes=settings.error_codebook_sizes,
            num_features=settings.error_features,
            repeats=settings.repeats,
            seed=settings.seed,
        )
        for d in settings.dims
        for codes in theorem1.CODES
    }
    cells |= {
        theorem2.optimal_key(law, d): partial(
            theorem2.measure_optimal,
            law,
            d,
            codebook_sizes=sizes,
            num_features=settings.optimal_features,
            iterations=settings.optimal_iterations,
            repeats=settings.optimal_repeats,
            seed=settings.seed,
        )
        for d, sizes in settings.optimal_codebook_sizes.items()
        for law in LAWS
    }
    cells |= {
        theorem2.drawn_key(law, d): partial(
            theorem2.measure_drawn,
            law,
            d,
            codebook_sizes=settings.drawn_codebook_sizes,
            num_features=settings.drawn_features,
            repeats=settings.drawn_repeats,
            seed=settings.seed,
        )
        for d in settings.dims
        for law in LAWS
    }
    return measure("theorems", out, settings, cells, _conclude, partial(_draw, settings))


def _conclude(results: Results) -> Conclusion:
    first, told_first = theorem1.conclude(results)
    second, told_second = theorem2.conclude(results)
    return Conclusion({"theorem 1": first, "theorem 2": second}, [*told_first, *told_second])


def _draw(settings: Settings, results: Results) -> Figure:
    columns = len(settings.dims)
    figure, axes = new_axes(
        4,
        columns,
        size=(4.3 * columns, 15.5),
        title="The two theorems, over growing N and K (Theorem 1: dotted where it says that some remain)",
    )
    for column, d in enumerate(settings.dims):
        use, error, powers, best = axes[column::columns]
        theorem1.draw(results, d, use, error)
        theorem2.draw_errors(results, d, powers)
        theorem2.draw_powers(results, d, best)
    handles = {
        label: handle for ax in axes[::columns] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure
