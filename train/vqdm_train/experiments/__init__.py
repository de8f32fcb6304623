"""Experiments of `vqdm experiment`: each reproduces a figure or a table, ours beside what was published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vqdm_train.experiments import (
    distances,
    figure5,
    optvq_consistency,
    optvq_dynamics,
    optvq_iterations,
    optvq_normalization,
    optvq_table2,
    optvq_table3,
    rate_distortion,
)
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
    "optvq-consistency": Experiment(
        optvq_consistency.run,
        optvq_consistency.FULL,
        optvq_consistency.QUICK,
        "OptVQ, Fig. 7: when transport and nearest code agree, as the codes move away from the features",
        "30 seconds; quick: 5 seconds",
    ),
    "optvq-dynamics": Experiment(
        optvq_dynamics.run,
        optvq_dynamics.FULL,
        optvq_dynamics.QUICK,
        "OptVQ, Fig. 6: where codes go in two dimensions, by nearest and by transport training",
        "90 seconds; quick: 10 seconds",
    ),
    "optvq-iterations": Experiment(
        optvq_iterations.run,
        optvq_iterations.FULL,
        optvq_iterations.QUICK,
        "OptVQ, Fig. 9: what each iteration of Sinkhorn still changes, published recursion and exact",
        "2 minutes; quick: 10 seconds",
    ),
    "optvq-normalization": Experiment(
        optvq_normalization.run,
        optvq_normalization.FULL,
        optvq_normalization.QUICK,
        "OptVQ, Fig. 8: what float32 makes of costs with and without normalisation",
        "1 minute; quick: 10 seconds",
    ),
    "optvq-table2": Experiment(
        optvq_table2.run,
        optvq_table2.FULL,
        optvq_table2.QUICK,
        "OptVQ, Table 2: PSNR and code use of plain VQ and OptVQ on real digits; curves, use of each code, pictures",
        "10 minutes; quick: 15 seconds",
    ),
    "optvq-table3": Experiment(
        optvq_table3.run,
        optvq_table3.FULL,
        optvq_table3.QUICK,
        "OptVQ, Table 3: loss and code use over codebook sizes in 64 and 8 dimensions; curves, pictures",
        "15 minutes; quick: 15 seconds",
    ),
    "rate-distortion": Experiment(
        rate_distortion.run,
        rate_distortion.FULL,
        rate_distortion.QUICK,
        "How wide a codebook should be, over dimensions and codebook sizes; Shannon's bound beside it",
        "7 minutes; quick: 15 seconds",
    ),
}
