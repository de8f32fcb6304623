"""The quantizer of a run, built from its config."""

import dataclasses
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vqdm_cuda import QUANTIZERS, MultiHeadQuantizer, MultiScaleQuantizer, Quantizer, ResidualQuantizer
from vqdm_train.quantizer_options import (
    EMAConfig,
    FiniteScalarConfig,
    IndexBackpropConfig,
    LinearConfig,
    LookupFreeConfig,
    OnlineConfig,
    SinkhornConfig,
)

__all__ = ["KINDS", "QuantizerConfig", "build_quantizer"]

_Kind = Literal[
    "vector",
    "ema",
    "online",
    "linear",
    "normalized",
    "wasserstein",
    "sinkhorn",
    "finite_scalar",
    "lookup_free",
    "index_backprop",
]
KINDS: dict[str, type[Quantizer]] = {kind: QUANTIZERS[kind] for kind in get_args(_Kind)}
_OF_ALL = ("kind", "codebook_size", "init", "table", "num_heads", "residual_depth", "scales")
_MULTI_SCALE = ("phi_kernel_size", "phi_ratio", "num_phi", "matching", "scale_weights")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """The quantizer of single vectors, by its kind, and what is built of it: several heads, depths or scales.

    Names and meanings are those of the constructors (`KINDS`), which check the values when the quantizer is built.
    A wasserstein_weight of 0 trains without matching.
    """

    kind: _Kind = "wasserstein"
    codebook_size: int = 4096  # of kinds finite_scalar and lookup_free, what their options make it
    init: Literal["random", "kmeans"] = "random"  # kmeans: codes start at the k-means of the first features
    table: str | None = None  # codes start at those of a file, .npy or .safetensors: [K, d], or [K, linear.table_dim]
    init_std: float | None = None  # of normal initial codes; None is d^-1/2, 1 of kinds sinkhorn and index_backprop
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
    # each of the kind of its name:
    ema: EMAConfig = field(default_factory=EMAConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    sinkhorn: SinkhornConfig = field(default_factory=SinkhornConfig)
    finite_scalar: FiniteScalarConfig = field(default_factory=FiniteScalarConfig)
    lookup_free: LookupFreeConfig = field(default_factory=LookupFreeConfig)
    index_backprop: IndexBackpropConfig = field(default_factory=IndexBackpropConfig)
    # of one structure at most:
    num_heads: int = 1  # pieces of each vector with an index of their own
    residual_depth: int = 1  # codes that add up to a vector
    scales: tuple[int, ...] = ()
    # of a multi-scale quantizer:
    phi_kernel_size: int = 3
    phi_ratio: float = 0.5
    num_phi: int | None = 4
    matching: Literal["pooled", "per_scale", "pooled_and_last"] = "pooled"
    scale_weights: tuple[float, ...] = ()  # none weighs all scales alike

    def __post_init__(self) -> None:
        if any(scale < 1 for scale in self.scales) or list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"quantizer: expected scales that grow from 1 or more, got {list(self.scales)}")
        if self.num_heads < 1 or (self.scales and self.num_heads > 1):
            raise ValueError(f"quantizer: expected num_heads >= 1, and 1 with scales, got {self.num_heads}")
        if self.residual_depth < 1 or (self.residual_depth > 1 and (self.scales or self.num_heads > 1)):
            raise ValueError(
                f"quantizer: expected residual_depth >= 1, and 1 with scales or heads, got {self.residual_depth}"
            )
        self._refuse_idle()
        if self.init == "kmeans" or self.table is not None:
            self._check_start()

    def _refuse_idle(self) -> None:
        """An option that does nothing is a mistake of the user's that silence would hide; 0 and false say just that."""
        for name, value in vars(self).items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                used, where, defaults = name == self.kind, f"kind={name}", type(value)()
                own = {f"{name}.{inner}": (given, getattr(defaults, inner)) for inner, given in vars(value).items()}
            else:
                used, where = self._uses(name)
                own = {name: (value, getattr(type(self), name))}
            for option, (given, default) in own.items():
                says_no = given is False or (name == option and given == 0)
                if not used and given != default and not says_no:
                    raise ValueError(f"quantizer: expected {option} only with {where}, got {option}={given}")

    def _uses(self, name: str) -> tuple[bool, str]:
        """Whether an option does something, and what it does something with."""
        if name in _OF_ALL:
            return True, ""
        if name in _MULTI_SCALE:
            return bool(self.scales), "scales"
        kinds = [kind for kind, quantizer in KINDS.items() if name in _arguments(quantizer)]
        return self.kind in kinds, f"kind={' or '.join(kinds)}"

    def _check_start(self) -> None:
        told = f"init={self.init} and table={self.table}"
        if "init_std" not in _arguments(KINDS[self.kind]):
            raise ValueError(
                f"quantizer: expected no codes to start at of kind {self.kind}, which has none, got {told}"
            )
        if self.init_std is not None or self.init_bound is not None:
            raise ValueError(
                f"quantizer: expected init_std=null and init_bound=null beside {told}, "
                f"got {self.init_std} and {self.init_bound}"
            )
        if self.init == "kmeans" and self.table is not None:
            raise ValueError(f"quantizer: expected init=kmeans or a table, got {told}")
        if self.init == "kmeans" and (self.scales or self.residual_depth > 1):
            raise ValueError(
                "quantizer: expected init=random with scales or residual_depth, whose codes stand for what other codes "
                "left over, got kmeans"
            )
        if self.init == "kmeans" and self.linear.table_dim is not None:
            raise ValueError(
                "quantizer: expected linear.table_dim=null with init=kmeans, so that the codes can start at features, "
                f"got {self.linear.table_dim}"
            )


@functools.cache
def _arguments(quantizer: type[Quantizer]) -> tuple[str, ...]:
    """The names of the constructor's arguments: the one list of what is an option of the quantizer."""
    return tuple(inspect.signature(quantizer).parameters)


def build_quantizer(config: QuantizerConfig, code_dim: int) -> Quantizer:
    """The quantizer that the config describes, for vectors of `code_dim` numbers.

    Raises ValueError, with the quantizer's own reason, for options that it does not take.
    """
    if code_dim % config.num_heads:
        raise ValueError(
            f"quantizer: expected num_heads to divide the {code_dim} latent channels, got {config.num_heads}"
        )
    try:
        return _build_structure(config, _build_per_vector(config, code_dim // config.num_heads))
    except (TypeError, ValueError) as error:
        raise ValueError(f"quantizer: {error}") from None


def _build_structure(config: QuantizerConfig, inner: Quantizer) -> Quantizer:
    if config.num_heads > 1:
        return MultiHeadQuantizer(inner, config.num_heads)
    if config.residual_depth > 1:
        return ResidualQuantizer(inner, config.residual_depth)
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
    quantizer = KINDS[config.kind]
    own = getattr(config, config.kind, None)  # the options of this kind alone, where it has some
    options: dict[str, Any] = {**vars(config), **(vars(own) if own else {}), "code_dim": code_dim}
    built = quantizer(**{name: options[name] for name in _arguments(quantizer)})
    if (built.codebook_size, built.code_dim) != (config.codebook_size, code_dim):
        raise ValueError(
            f"expected codebook_size {built.codebook_size} and codes of {built.code_dim} numbers "
            f"(model.latent_channels, divided by num_heads) of kind {config.kind} with its options, got "
            f"{config.codebook_size} and {code_dim}"
        )
    return built
