"""Learning rate and beta1 as pure functions of the step: a run that goes on needs no scheduler's state.

cosine      lr(step) = lr w(step) (final + (1 - final) (1 + cos(pi step / steps)) / 2)
constant    lr(step) = lr w(step)
step        lr(step) = lr w(step) decay_factor^(number of decay_steps that are <= step)
one_cycle   lr(step) rises by half a cosine from lr / 25 in the first hundredth of the steps, then falls by half a
            cosine to lr / 250,000; meanwhile beta1 falls by 0.1 and rises again (Smith and Topin 2019; torch's
            OneCycleLR with pct_start 0.01, as OptVQ trains)

with the warm-up w(step) = min(1, (step + 1) / warmup_steps).
"""

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["BETA1_RANGE", "ScheduleConfig", "schedule"]

# Of one_cycle: the part of the steps in which the learning rate rises, its start below the peak, and its end below its
# start; and the range of beta1. All are torch's defaults but the first.
_RISE, _START, _END, BETA1_RANGE = 0.01, 1 / 25, 1e-4, 0.1
_ONLY_WITH = {
    "warmup_steps": ("cosine", "constant", "step"),
    "final_lr_ratio": ("cosine",),
    "decay_steps": ("step",),
    "decay_factor": ("step",),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How learning rates go, as parts of their peaks."""

    schedule: Literal["cosine", "constant", "step", "one_cycle"] = "cosine"
    warmup_steps: int = 50  # of all but one_cycle; 1 is no warm-up
    final_lr_ratio: float = 0.1  # of cosine, which ends at this part of the peak
    decay_steps: tuple[int, ...] = ()  # of step
    decay_factor: float = 0.1  # of step

    def __post_init__(self) -> None:
        if self.warmup_steps < 1:
            raise ValueError(f"optimizer: expected warmup_steps >= 1 (1 is no warm-up), got {self.warmup_steps}")
        if not 0 <= self.final_lr_ratio <= 1:
            raise ValueError(f"optimizer: expected final_lr_ratio in [0, 1], got {self.final_lr_ratio}")
        if not 0 < self.decay_factor < 1:
            raise ValueError(f"optimizer: expected decay_factor in (0, 1), got {self.decay_factor}")
        if any(step < 1 for step in self.decay_steps) or list(self.decay_steps) != sorted(set(self.decay_steps)):
            raise ValueError(f"optimizer: expected decay_steps that grow from 1 or more, got {list(self.decay_steps)}")
        if self.schedule == "step" and not self.decay_steps:
            raise ValueError("optimizer: expected decay_steps with schedule=step, got none")
        for name, schedules in _ONLY_WITH.items():
            value = getattr(self, name)
            if self.schedule not in schedules and value != getattr(ScheduleConfig, name):
                raise ValueError(
                    f"optimizer: expected {name} only with schedule={' or '.join(schedules)}, got {name}={value}"
                )


def schedule(step: int, steps: int, config: ScheduleConfig, beta1: float) -> tuple[float, float]:
    """At `step`, counted from 0, of `steps`: the factor on every learning rate, and beta1."""
    if config.schedule == "one_cycle":
        factor, height = _one_cycle(step, steps)
        return factor, beta1 + BETA1_RANGE * (1 - height)
    factor = min(1.0, (step + 1) / config.warmup_steps)
    if config.schedule == "cosine":
        cosine = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
        factor *= config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine
    if config.schedule == "step":
        factor *= config.decay_factor ** sum(decay <= step for decay in config.decay_steps)
    return factor, beta1


def _one_cycle(step: int, steps: int) -> tuple[float, float]:
    """The factor on every learning rate, and how far up it is, from 0 at both ends to 1 at the peak."""
    peak, last = _RISE * steps - 1, steps - 1
    if step <= peak:
        height = (1 - math.cos(math.pi * step / peak)) / 2 if peak > 0 else 1.0
        return _START + (1 - _START) * height, height
    height = (1 + math.cos(math.pi * min(1.0, (step - peak) / (last - peak)))) / 2
    end = _START * _END
    return end + (1 - end) * height, height
