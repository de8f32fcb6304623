"""What Figure 5 of the Wasserstein VQ paper compares: the settings, and the methods with their constants.

The published figure was made by VQ-Research/Wasserstein-VQ, SimulationAnalyses/DistributionalMatchingPerspective/*/
VariousVQs.py: K = 16384, d = 8, 50,000 fresh features in every one of 2000 steps of SGD with momentum 0.9, metrics of
200,000 further features. The paper's text says d = 16 and 20,000 features; no values of that setting were published.
The features are data, so only the codebook moves. With c the squared distance of a feature to its code, summed over the
d numbers (ours is the mean over them: the weights below hold the factor d),

    published constants    0.1 c + 10 L_W      learning rate 3
    ours                   c + 10 L_W          learning rate 10; c after the first fifth of the steps, and over the
                                               last fifth the rate falls to 0 in a straight line
    vanilla                c                   learning rate 1
    linear                 c                   learning rate 0.02, of the map alone
    online                 c                   learning rate 3, and unused codes to their closest features, decay 0.9
    ema                    no loss             decay 0.9, smoothing 1e-5
    optvq                  c                   learning rate 3, 4,096 features a step; not in the paper

A code that no feature selects has no gradient from c; L_W moves all codes, by at most 10 lr / (1 - momentum) / K a
step: 0.018 at the published rate, which takes 1240 of the 2000 steps to the largest mean, sqrt(8) * 8 away.

Where ours deviates, one setting for all means, and why:
- The constants of the published code do not give its published E at means 0 to 3: at mean 0 it has 0.987, and ours with
  its constants 1.029. (Its own vanilla run, with over 3 times the pull, lr times weight, has 1.001.) So the pull is
  stronger here.
- It sets in when L_W has brought the codes to the features, 370 steps for the largest mean at this rate. On the way
  there few codes have all the features, and a strong pull bends the codebook out of shape: with 0.18 c from the start,
  C was 9,900 at mean 8 after 800 steps. (And SGD is unstable for a code that has all features from lr times weight =
  1 + momentum on.)
- The rate falls to 0 at the end, since at a constant one W stops falling where a step is as long as the way left.

Where the others do:
- ema: its counts start at 1, its sums at the codes. The published counts start at 0: the first step throws each code
  away, 90,000 times as far where no feature selected it, and the decay brings it back past the features within 110
  steps, so that some codes are found after all ("ema, counts from 0").
- linear: its map's weight is drawn from N(0, 1/d); the published one is torch's default, of a third of the variance.
- online: a step's unused codes are those before the optimizer's step, the published ones those after it.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from vqdm_cuda import (
    EMAQuantizer,
    LinearQuantizer,
    OnlineClusteringQuantizer,
    Quantizer,
    SinkhornQuantizer,
    VectorQuantizer,
    WassersteinQuantizer,
)

__all__ = ["FULL", "METHODS", "QUICK", "SETTINGS", "Method", "Settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    distribution: str = "gaussian"  # codes from N(0, I), features from N(mean 1, I); "uniform": even in [-1, 1]^d
    codebook_size: int = 16384
    code_dim: int = 8
    num_features: int = 50_000  # fresh ones in every step
    num_validation: int = 200_000
    steps: int = 2000
    eval_every: int = 100
    momentum: float = 0.9
    lr_factor: float = 1.0  # on every method's learning rate: a small codebook needs fewer steps of the same length
    means: dict[str, tuple[float, ...]] = dataclasses.field(
        default_factory=lambda: {
            "wasserstein": tuple(map(float, range(9))),
            "wasserstein, rate-distortion target": (5.0,),
            "wasserstein, published constants": (0.0,),
            "vanilla": (0.0, 1.0, 2.0, 4.0, 5.0, 8.0),
            "ema": (0.0, 1.0, 2.0, 4.0, 5.0, 8.0),
            "ema, counts from 0": (2.0, 5.0),
            "linear": (0.0, 1.0, 2.0, 4.0, 5.0, 8.0),
            "online": (0.0, 1.0, 2.0, 4.0, 5.0, 8.0),
            "optvq": (0.0, 2.0, 5.0),
        }
    )
    curve_mean: float = 2.0  # at which the figure shows E, U, C and W over the steps, as the paper's does
    seed: int = 12  # the published code's


def _even(settings: Settings) -> Settings:
    return dataclasses.replace(settings, distribution="uniform")


class Method(NamedTuple):
    """A further method is one more entry: how its quantizer is made and how it is trained."""

    make: Callable[..., Quantizer]  # of K, d, and init_std or init_bound
    lr: float  # of SGD; of no matter to a quantizer that moves its codebook by itself
    fit_from: float = 0.0  # the fraction of the steps after which the pull to the features sets in
    decay: float = 0.0  # the last fraction of the steps, in which the learning rate falls to 0 in a straight line
    published: str | None = None  # what it stands beside
    num_features: int | None = None  # of a step, where it cannot afford as many as the others

    def quantizer(self, settings: Settings) -> Quantizer:
        """Its codes are drawn from the law of the features at mean 0."""
        init = {"init_bound": 1.0} if settings.distribution == "uniform" else {"init_std": 1.0}
        return self.make(settings.codebook_size, settings.code_dim, **init)


def _wasserstein(K: int, d: int, *, fit_weight: float = 1.0, target: str = "features", **init: Any) -> Quantizer:
    return WassersteinQuantizer(K, d, codebook_weight=fit_weight * d, wasserstein_weight=10.0, target=target, **init)


def _vanilla(K: int, d: int, **init: Any) -> Quantizer:
    return VectorQuantizer(K, d, codebook_weight=1.0 * d, **init)


def _ema(K: int, d: int, **init: Any) -> Quantizer:
    return EMAQuantizer(K, d, decay=0.9, smoothing=1e-5, **init)


def _ema_from_zero(K: int, d: int, **init: Any) -> Quantizer:
    quantizer = EMAQuantizer(K, d, decay=0.9, smoothing=1e-5, **init)
    quantizer.counts.zero_()
    return quantizer


def _linear(K: int, d: int, **init: Any) -> Quantizer:
    return LinearQuantizer(K, d, codebook_weight=1.0 * d, **init)


def _online(K: int, d: int, **init: Any) -> Quantizer:
    return OnlineClusteringQuantizer(K, d, decay=0.9, anchors="closest", codebook_weight=1.0 * d, **init)


def _optvq(K: int, d: int, **init: Any) -> Quantizer:
    return SinkhornQuantizer(K, d, linear_map=False, codebook_weight=1.0 * d, **init)


METHODS: dict[str, Method] = {
    "wasserstein": Method(_wasserstein, 10.0, 0.2, 0.2, "wasserstein"),
    "wasserstein, rate-distortion target": Method(partial(_wasserstein, target="rate_distortion"), 10.0, 0.2, 0.2),
    "wasserstein, published constants": Method(partial(_wasserstein, fit_weight=0.1), 3.0, published="wasserstein"),
    "vanilla": Method(_vanilla, 1.0, published="vanilla"),
    "ema": Method(_ema, 0.0, published="ema"),
    "ema, counts from 0": Method(_ema_from_zero, 0.0, published="ema"),
    "linear": Method(_linear, 0.02, published="linear"),
    "online": Method(_online, 3.0, published="online"),
    "optvq": Method(_optvq, 3.0, num_features=4096),
}

FULL = Settings()
QUICK = Settings(
    codebook_size=1024,
    num_features=4000,
    num_validation=20_000,
    steps=250,
    eval_every=25,
    lr_factor=1 / 3,  # 1/16 of the codes, and about 1/7 of the steps to get there
    means=dict.fromkeys(
        ("wasserstein", "wasserstein, rate-distortion target", "vanilla", "ema", "linear", "online"), (0.0, 2.0, 5.0)
    ),
)

# Full and quick by the name that --setting takes: the published code's, the paper's text, and both with even features.
_PAPER = (dataclasses.replace(FULL, code_dim=16, num_features=20_000), dataclasses.replace(QUICK, code_dim=16))
SETTINGS: dict[str, tuple[Settings, Settings]] = {
    "code": (FULL, QUICK),
    "uniform": (_even(FULL), _even(QUICK)),
    "paper": _PAPER,
    "paper-uniform": (_even(_PAPER[0]), _even(_PAPER[1])),
}
