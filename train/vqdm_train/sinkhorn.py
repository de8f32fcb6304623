"""The settings of a Sinkhorn quantizer (OptVQ) that other quantizers do not have."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["SinkhornConfig"]


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

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"quantizer.sinkhorn: expected eps > 0, got {self.eps}")
        for name in ("num_iters", "floor", "start_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"quantizer.sinkhorn: expected {name} >= 0, got {getattr(self, name)}")
