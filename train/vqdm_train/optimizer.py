"""AdamW with the codebook in its own parameter group, and learning rate and beta1 as pure functions of the step.

cosine      lr(step) = lr min(1, (step + 1) / warmup_steps) (final + (1 - final) (1 + cos(pi step / steps)) / 2)
one_cycle   lr(step) rises by half a cosine from lr / 25 in the first hundredth of the steps, then falls by half a
            cosine to lr / 250,000; meanwhile beta1 falls by 0.1 and rises again (Smith and Topin 2019; torch's
            OneCycleLR with pct_start 0.01, as OptVQ trains)

Weight decay acts on matrices and kernels alone, that of a linear map on the codebook among them: never on biases, norms
or the codes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vqdm_cuda import ImageTokenizer

__all__ = ["OptimizerConfig", "build_optimizer", "clip_gradients", "load_optimizer", "optimizer_tensors", "schedule"]

# Of one_cycle: the part of the steps in which the learning rate rises, its start below the peak, and its end below its
# start; and the range of beta1. All are torch's defaults but the first.
_RISE, _START, _END, _BETA1_RANGE = 0.01, 1 / 25, 1e-4, 0.1


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, warm-up and cosine. A codebook_lr of its own is what lets codes move as fast as matching needs."""

    lr: float = 3e-4
    codebook_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)  # with one_cycle, the first is its value at the peak of the learning rate
    eps: float = 1e-8
    weight_decay: float = 0.005
    schedule: Literal["cosine", "one_cycle"] = "cosine"
    warmup_steps: int = 50  # of cosine
    final_lr_ratio: float = 0.1  # of cosine, which ends at this part of the peak
    grad_clip: float = 1.0  # largest norm of the model's gradient, and, separately, of the codebook's
    clip_together: bool = False  # one norm, of both

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.codebook_lr <= 0:
            raise ValueError(f"optimizer: expected lr and codebook_lr > 0, got {self.lr} and {self.codebook_lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer: expected betas in [0, 1), got {list(self.betas)}")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer: expected weight_decay >= 0, got {self.weight_decay}")
        if self.warmup_steps < 1:
            raise ValueError(f"optimizer: expected warmup_steps >= 1 (1 is no warm-up), got {self.warmup_steps}")
        if not 0 <= self.final_lr_ratio <= 1:
            raise ValueError(f"optimizer: expected final_lr_ratio in [0, 1], got {self.final_lr_ratio}")
        if self.grad_clip <= 0 or self.eps <= 0:
            raise ValueError(f"optimizer: expected grad_clip and eps > 0, got {self.grad_clip} and {self.eps}")
        if self.schedule == "one_cycle":
            if self.betas[0] + _BETA1_RANGE >= 1:
                raise ValueError(
                    f"optimizer: expected the first of betas below {1 - _BETA1_RANGE} with schedule=one_cycle, which "
                    f"adds up to {_BETA1_RANGE}, got {self.betas[0]}"
                )
            for name in ("warmup_steps", "final_lr_ratio"):
                value, default = getattr(self, name), getattr(type(self), name)
                if value != default:
                    raise ValueError(f"optimizer: expected {name} only with schedule=cosine, got {name}={value}")


def schedule(step: int, steps: int, config: OptimizerConfig) -> tuple[float, float]:
    """At `step`, counted from 0, of `steps`: the factor on every learning rate, and beta1."""
    if config.schedule == "cosine":
        return _cosine(step, steps, config), config.betas[0]
    factor, height = _one_cycle(step, steps)
    return factor, config.betas[0] + _BETA1_RANGE * (1 - height)


def _cosine(step: int, steps: int, config: OptimizerConfig) -> float:
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    return warmup * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def _one_cycle(step: int, steps: int) -> tuple[float, float]:
    """The factor on every learning rate, and how far up it is, from 0 at both ends to 1 at the peak."""
    peak, last = _RISE * steps - 1, steps - 1
    if step <= peak:
        height = (1 - math.cos(math.pi * step / peak)) / 2 if peak > 0 else 1.0
        return _START + (1 - _START) * height, height
    height = (1 + math.cos(math.pi * min(1.0, (step - peak) / (last - peak)))) / 2
    end = _START * _END
    return end + (1 - end) * height, height


def build_optimizer(tokenizer: ImageTokenizer, config: OptimizerConfig) -> torch.optim.AdamW:
    """Four groups: weights (decayed), biases and norms, codes, the weight of a linear map on the codes (decayed).

    `group["peak_lr"]` is the peak of its learning rate. `clip_gradients` takes the last two as the codebook.
    """
    codebook = tokenizer.quantizer.codebook_parameters()
    ours = {id(parameter) for parameter in codebook}
    maps = {id(module.weight) for module in tokenizer.quantizer.modules() if isinstance(module, nn.Linear)}
    rest = [p for p in tokenizer.parameters() if p.requires_grad and id(p) not in ours]
    lr, codebook_lr, decay = config.lr, config.codebook_lr, config.weight_decay
    groups: list[dict[str, object]] = [
        {"params": [p for p in rest if p.ndim > 1], "peak_lr": lr, "weight_decay": decay},
        {"params": [p for p in rest if p.ndim <= 1], "peak_lr": lr, "weight_decay": 0.0},
        {"params": [p for p in codebook if id(p) not in maps], "peak_lr": codebook_lr, "weight_decay": 0.0},
        {"params": [p for p in codebook if id(p) in maps], "peak_lr": codebook_lr, "weight_decay": decay},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps)


def clip_gradients(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> tuple[Tensor, Tensor]:
    """Bounds the gradients' norms; returns them as they were, the model's and the codebook's (0 of a frozen one)."""
    groups = [group["params"] for group in optimizer.param_groups]
    parts = [[*groups[0], *groups[1]], [*groups[2], *groups[3]]]
    norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts]
    if config.clip_together:
        together = torch.stack([norm.to(norms[0].device) for norm in norms]).norm()
        nn.utils.clip_grads_with_norm_([*parts[0], *parts[1]], config.grad_clip, together)
    else:
        for part, norm in zip(parts, norms, strict=True):
            nn.utils.clip_grads_with_norm_(part, config.grad_clip, norm)
    return norms[0], norms[1].to(norms[0].device)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
) -> dict[str, Tensor]:
    """The optimizer's state under the names of the parameters, `NAME.exp_avg` and so on; copies, on the CPU."""
    return {
        f"{name}.{key}": value.detach().to("cpu", copy=True).contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: dict[str, Tensor],
) -> None:
    """Puts the state of `optimizer_tensors` back, on each parameter's device."""
    state: dict[Tensor, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, key = full_name.rsplit(".", 1)
        parameter = parameters[name]
        # AdamW keeps `step` on the CPU. The rest takes the parameter's memory layout too: another may round otherwise.
        place = torch.empty_like(value if key == "step" else parameter)
        state.setdefault(parameter, {})[key] = place.detach().copy_(value)
    optimizer.state.clear()
    optimizer.state.update(state)
