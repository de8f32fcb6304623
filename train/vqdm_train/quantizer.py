"""The quantizer of a run, built from its config."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vqdm_cuda import (
    MultiHeadQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    SinkhornQuantizer,
    VectorQuantizer,
    WassersteinQuantizer,
)
from vqdm_train.sinkhorn import SinkhornConfig

__all__ = ["QuantizerConfig", "build_quantizer"]


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """The quantizer; `scales` makes it multi-scale. A wasserstein_weight of 0 trains without matching."""

    kind: Literal["vector", "wasserstein", "sinkhorn"] = "wasserstein"
    codebook_size: int = 4096
    num_heads: int = 1  # pieces of each vector with an index of their own
    init_std: float | None = None  # of normal initial codes; None is d^-1/2, and 1 of kind sinkhorn
    init_bound: float | None = None  # of even ones instead
    freeze_codebook: bool = False
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    # of kind wasserstein:
    wasserstein_weight: float = 0.5
    grad_to: Literal["codebook", "features", "both"] = "codebook"
    squared: bool = False
    target: Literal["features", "rate_distortion", "gaussian"] = "features"
    target_std: float | None = None  # of target gaussian
    unbiased: bool = False
    normalize: Literal["features", "codebook"] | None = None
    cov_scale: float = 1.0
    tau: float = 1e-10
    queue_size: int = 0  # vectors, of all processes together, that the statistics are of; 0 is those of the batch
    sinkhorn: SinkhornConfig = field(default_factory=SinkhornConfig)  # of kind sinkhorn
    # of a multi-scale quantizer; no scales, no multi-scale:
    scales: tuple[int, ...] = ()
    phi_kernel_size: int = 3
    phi_ratio: float = 0.5
    num_phi: int | None = 4
    matching: Literal["pooled", "per_scale", "pooled_and_last"] = "pooled"
    scale_weights: tuple[float, ...] = ()  # none weighs all scales alike

    def __post_init__(self) -> None:
        if self.codebook_size < 1:
            raise ValueError(f"quantizer: expected codebook_size >= 1, got {self.codebook_size}")
        if (self.init_std is not None and self.init_std <= 0) or self.cov_scale <= 0:
            raise ValueError(
                f"quantizer: expected init_std and cov_scale > 0, got {self.init_std} and {self.cov_scale}"
            )
        if self.init_bound is not None and (self.init_bound <= 0 or self.init_std is not None):
            raise ValueError(
                "quantizer: expected init_bound > 0, and no init_std beside it, "
                f"got {self.init_bound} and {self.init_std}"
            )
        for name in ("commitment_weight", "codebook_weight", "wasserstein_weight", "tau"):
            if getattr(self, name) < 0:
                raise ValueError(f"quantizer: expected {name} >= 0, got {getattr(self, name)}")
        if self.freeze_codebook and self.codebook_weight != 0:
            raise ValueError(
                f"quantizer: expected codebook_weight=0 with freeze_codebook=true, got {self.codebook_weight}"
            )
        if any(scale < 1 for scale in self.scales) or list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"quantizer: expected scales that grow from 1 or more, got {list(self.scales)}")
        if self.num_heads < 1 or (self.scales and self.num_heads > 1):
            raise ValueError(f"quantizer: expected num_heads >= 1, and 1 with scales, got {self.num_heads}")
        self._refuse_idle("wasserstein", self.kind == "wasserstein", _WASSERSTEIN)
        self._refuse_idle("multi-scale", bool(self.scales), _MULTI_SCALE)
        if self.kind == "wasserstein":
            self._check_matching()
        self._check_sinkhorn()
        self._check_scale_weights()

    def _check_matching(self) -> None:
        if self.target == "rate_distortion" and self.grad_to == "features":
            raise ValueError("quantizer: expected target=features with grad_to=features, got target=rate_distortion")
        if (self.target == "gaussian") != (self.target_std is not None and self.target_std > 0):
            raise ValueError(
                "quantizer: expected target_std > 0 with target=gaussian, and null with any other, "
                f"got {self.target_std} with target={self.target}"
            )
        if (self.target == "gaussian" or self.freeze_codebook) and self.grad_to != "features":
            raise ValueError(
                "quantizer: expected grad_to=features with target=gaussian and with freeze_codebook=true, "
                f"got {self.grad_to}"
            )
        if self.target == "gaussian" and self.normalize is not None:
            raise ValueError(f"quantizer: expected normalize=null with target=gaussian, got {self.normalize}")
        if self.queue_size < 0 or self.queue_size == 1:
            raise ValueError(f"quantizer: expected queue_size 0 or at least 2, got {self.queue_size}")
        if self.queue_size and self.matching != "pooled":
            raise ValueError(f"quantizer: expected matching=pooled with a queue_size, got {self.matching}")

    def _check_sinkhorn(self) -> None:
        for option in dataclasses.fields(SinkhornConfig):
            value = getattr(self.sinkhorn, option.name)
            idle = (option.default, False) if option.name == "linear_map" else (option.default,)
            if self.kind != "sinkhorn" and value not in idle:
                raise ValueError(
                    f"quantizer: expected sinkhorn.{option.name} only in a sinkhorn quantizer, got {value}"
                )
        if self.kind == "sinkhorn" and self.freeze_codebook:
            raise ValueError("quantizer: expected freeze_codebook=false of kind sinkhorn, got true")
        sinkhorn = self.sinkhorn
        if self.scales and (sinkhorn.loss_form == "ce" or sinkhorn.sinkhorn_at_evaluation or sinkhorn.start_step):
            raise ValueError(
                "quantizer: expected sinkhorn.loss_form l2 or l1, and neither sinkhorn_at_evaluation nor start_step, "
                f"with scales, got {sinkhorn.loss_form}, {sinkhorn.sinkhorn_at_evaluation} and {sinkhorn.start_step}"
            )

    def _check_scale_weights(self) -> None:
        weights = self.scale_weights
        if weights and (len(weights) != len(self.scales) or min(weights) < 0 or not 0 < sum(weights) < math.inf):
            raise ValueError(
                f"quantizer: expected one of scale_weights for each of {len(self.scales)} scales, none negative and "
                f"not all 0, got {list(weights)}"
            )

    def _refuse_idle(self, system: str, used: bool, names: tuple[str, ...]) -> None:
        """An option that would do nothing is a mistake of the user's that silence would hide; 0 says just that."""
        for name in names:
            value, default = getattr(self, name), getattr(type(self), name)
            if not used and value not in (default, 0):
                raise ValueError(f"quantizer: expected {name} only in a {system} quantizer, got {name}={value}")


_WASSERSTEIN = (
    *("grad_to", "squared", "target", "target_std", "unbiased", "normalize", "cov_scale", "tau", "queue_size"),
    "wasserstein_weight",
)
_MULTI_SCALE = ("phi_kernel_size", "phi_ratio", "num_phi", "matching", "scale_weights")


def build_quantizer(config: QuantizerConfig, code_dim: int) -> Quantizer:
    """The quantizer that the config describes, for codes of `code_dim` numbers."""
    if code_dim % config.num_heads:
        raise ValueError(
            f"quantizer: expected num_heads to divide the {code_dim} latent channels, got {config.num_heads}"
        )
    inner = _build_per_vector(config, code_dim // config.num_heads)
    if config.num_heads > 1:
        return MultiHeadQuantizer(inner, config.num_heads)
    if not config.scales:
        return inner
    return MultiScaleQuantizer(
        inner,
        config.scales,
        phi_kernel_size=config.phi_kernel_size,
        phi_ratio=config.phi_ratio,
        num_phi=config.num_phi,
        matching=config.matching,
        scale_weights=config.scale_weights or None,
    )


def _build_per_vector(config: QuantizerConfig, code_dim: int) -> Quantizer:
    common: dict[str, Any] = {
        "commitment_weight": config.commitment_weight,
        "codebook_weight": config.codebook_weight,
        "gradient": config.gradient,
        "init_std": config.init_std,
        "init_bound": config.init_bound,
    }
    if config.kind == "sinkhorn":
        return SinkhornQuantizer(config.codebook_size, code_dim, **common, **dataclasses.asdict(config.sinkhorn))
    common["freeze_codebook"] = config.freeze_codebook
    if config.kind == "vector":
        return VectorQuantizer(config.codebook_size, code_dim, **common)
    return WassersteinQuantizer(
        config.codebook_size,
        code_dim,
        **common,
        wasserstein_weight=config.wasserstein_weight,
        grad_to=config.grad_to,
        squared=config.squared,
        target=config.target,
        target_std=config.target_std,
        unbiased=config.unbiased,
        normalize=config.normalize,
        cov_scale=config.cov_scale,
        tau=config.tau,
        queue_size=config.queue_size,
    )
