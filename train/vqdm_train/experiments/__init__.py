"""Experiments of `vqdm experiment`: each reproduces a figure or a table, ours beside what was published."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vqdm_train.experiments import (
    ablation,
    criteria_sweeps,
    distances,
    figure3,
    figure5,
    figure11,
    figure12,
    optvq_consistency,
    optvq_dynamics,
    optvq_iterations,
    optvq_normalization,
    optvq_table2,
    optvq_table3,
    quantizers,
    rate_distortion,
    theorems,
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
    settings: Mapping[str, tuple[Any, Any]] = MappingProxyType({})  # full and quick by the name of --setting, if any


EXPERIMENTS: dict[str, Experiment] = {
    "ablation": Experiment(
        ablation.run,
        ablation.FULL,
        ablation.QUICK,
        "Wasserstein VQ, Table 3 and Fig. 10: the demo's tokenizer with and without matching, over codebook sizes",
        "15 minutes; quick: 10 seconds",
    ),
    "distances": Experiment(
        distances.run,
        distances.FULL,
        distances.QUICK,
        "Wasserstein VQ, appendix: Wasserstein, KL and Bhattacharyya distance as matching losses",
        "2 minutes; quick: 20 seconds",
    ),
    "figure3": Experiment(
        figure3.run,
        figure3.FULL,
        figure3.QUICK,
        "Wasserstein VQ, Fig. 3: codes and features on disks that do not match in support or in width",
        "15 seconds; quick: 10 seconds",
    ),
    "figure4": Experiment(
        criteria_sweeps.run,
        criteria_sweeps.FULL["figure4"],
        criteria_sweeps.QUICK["figure4"],
        "Wasserstein VQ, Fig. 4: E, U and C over K, d and N where Gaussian codes match Gaussian features, and do not",
        "10 minutes; quick: 10 seconds",
    ),
    "figure5": Experiment(
        figure5.run,
        figure5.FULL,
        figure5.QUICK,
        "Wasserstein VQ, Fig. 5: codebooks that must follow features whose mean is 0 to 8; six systems, four settings",
        "4 hours a setting; quick: 30 seconds",
        figure5.SETTINGS,
    ),
    "figure7": Experiment(
        criteria_sweeps.run,
        criteria_sweeps.FULL["figure7"],
        criteria_sweeps.QUICK["figure7"],
        "Wasserstein VQ, Fig. 7: Fig. 4 with uniform features and codes",
        "1 minute; quick: 10 seconds",
    ),
    "figure8": Experiment(
        criteria_sweeps.run,
        criteria_sweeps.FULL["figure8"],
        criteria_sweeps.QUICK["figure8"],
        "Wasserstein VQ, Fig. 8: E over K, d and N where codes have the features' Gaussian law",
        "1 minute; quick: 10 seconds",
    ),
    "figure9": Experiment(
        criteria_sweeps.run,
        criteria_sweeps.FULL["figure9"],
        criteria_sweeps.QUICK["figure9"],
        "Wasserstein VQ, Fig. 9: E over K, d and N where codes have the features' uniform law",
        "1 minute; quick: 10 seconds",
    ),
    "figure11": Experiment(
        figure11.run,
        figure11.FULL,
        figure11.QUICK,
        "Wasserstein VQ, Fig. 11, a drawing: what utilization and perplexity see of a codebook's use",
        "5 seconds",
    ),
    "figure12": Experiment(
        figure12.run,
        figure12.FULL,
        figure12.QUICK,
        "Wasserstein VQ, Fig. 12, a drawing: a k-means step leaves the codes that no feature selects",
        "5 seconds",
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
    "quantizers": Experiment(
        quantizers.run,
        quantizers.FULL,
        quantizers.QUICK,
        "Every quantizer in the demo's tokenizer: PSNR before and after training, code use, bits, milliseconds",
        "20 minutes; quick: 20 seconds",
    ),
    "rate-distortion": Experiment(
        rate_distortion.run,
        rate_distortion.FULL,
        rate_distortion.QUICK,
        "How wide a codebook should be, over dimensions and codebook sizes; Shannon's bound beside it",
        "7 minutes; quick: 15 seconds",
    ),
    "theorems": Experiment(
        theorems.run,
        theorems.FULL,
        theorems.QUICK,
        "Wasserstein VQ, Theorems 1 and 2: which support and which density codes should have, over growing N and K",
        "25 seconds; quick: 12 seconds",
    ),
}
