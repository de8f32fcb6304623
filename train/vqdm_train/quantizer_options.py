"""Settings of one kind of quantizer alone: a class for each, held by `QuantizerConfig` under the name of the kind.

Fields and defaults are those of the quantizer's constructor, which checks the values.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "EMAConfig",
    "FiniteScalarConfig",
    "IndexBackpropConfig",
    "LinearConfig",
    "LookupFreeConfig",
    "OnlineConfig",
    "SinkhornConfig",
]


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """As in `EMAQuantizer`."""

    decay: float = 0.99
    smoothing: float = 1e-5
    revive_below: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """As in `OnlineClusteringQuantizer`."""

    decay: float = 0.99
    anchors: Literal["closest", "random", "probabilistic"] = "probabilistic"


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """As in `LinearQuantizer`."""

    table_dim: int | None = None
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class SinkhornConfig:
    """As in `SinkhornQuantizer`; the defaults are OptVQ's, but for `floor` and `stats` (docs/optvq.md)."""

    eps: float = 0.1
    num_iters: int = 5
    cost: Literal["euclidean", "sqeuclidean"] = "euclidean"
    normalize: Literal["std", "dim"] | None = "std"
    floor: float = 0.0
    stats: Literal["global", "local"] = "global"
    sample: bool = False
    sinkhorn_at_evaluation: bool = False
    linear_map: bool = True
    loss_form: Literal["l2", "l1", "ce"] = "l2"
    start_step: int = 0


@dataclass(frozen=True, kw_only=True)
class FiniteScalarConfig:
    """As in `FiniteScalarQuantizer`."""

    levels: tuple[int, ...] = (8, 5, 5, 5)


@dataclass(frozen=True, kw_only=True)
class LookupFreeConfig:
    """As in `LookupFreeQuantizer`."""

    bit_order: Literal["little", "big"] = "little"
    entropy_weight: float = 0.1
    diversity_weight: float = 1.0
    temperature: float = 0.01


@dataclass(frozen=True, kw_only=True)
class IndexBackpropConfig:
    """As in `IndexBackpropQuantizer`."""

    entropy_weight: float = 0.05
    temperature: float = 0.01
