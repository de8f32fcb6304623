"""Experiments of `vqdm experiment`: each reproduces a figure or a table, ours beside what was published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vqdm_train.experiments import distances, figure5, rate_distortion
from vqdm_train.experiments.common import Files

__all__ = ["EXPERIMENTS", "Experiment"]


class Experiment(NamedTuple):
    """How an experiment is run, and what it is."""

    run: Callable[[Path, Any], Files]
    full: Any  # settings, a frozen dataclass with a seed
    quick: Any  # settings that take less than a minute on two CPU cores
    description: str
    cost: str  # of the two, on one CPU core


EXPERIMENTS: dict[str, Experiment] = {
    "distances": Experiment(
        distances.run,
        distances.FULL,
        distances.QUICK,
        "Wasserstein VQ, appendix: Wasserstein, KL and Bhattacharyya distance as matching losses",
        "2 minutes; quick: 20 seconds",
    ),
    "figure5": Experiment(
        figure5.run,
        figure5.FULL,
        figure5.QUICK,
        "Wasserstein VQ, Fig. 5: codebooks that must follow features whose mean is 0 to 8",
        "1 hour; quick: 20 seconds",
    ),
    "rate-distortion": Experiment(
        rate_distortion.run,
        rate_distortion.FULL,
        rate_distortion.QUICK,
        "How wide a codebook should be, over dimensions and codebook sizes; Shannon's bound beside it",
        "7 minutes; quick: 15 seconds",
    ),
}
