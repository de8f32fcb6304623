"""AdamW of the tokenizer, with the codebook in parameter groups of its own, and of the discriminator.

Weight decay acts on matrices and kernels alone, that of a linear map on the codebook among them: never on biases, norms
or the codes. Learning rates follow one schedule (schedule.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqdm_cuda import ImageTokenizer
from vqdm_train.schedule import BETA1_RANGE, ScheduleConfig, schedule

__all__ = [
    "DiscriminatorOptimizerConfig",
    "OptimizerConfig",
    "build_discriminator_optimizer",
    "build_optimizer",
    "clip_gradients",
    "load_optimizer",
    "optimizer_tensors",
    "set_rates",
]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(ScheduleConfig):
    """AdamW and its schedule. A codebook_lr of its own is what lets codes move as fast as matching needs."""

    lr: float = 3e-4
    codebook_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)  # with one_cycle, the first is its value at the peak of the learning rate
    eps: float = 1e-8
    weight_decay: float = 0.005
    grad_clip: float | None = 1.0  # largest norm of the model's gradient, and, separately, of the codebook's
    clip_together: bool = False  # one norm, of both

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr <= 0 or self.codebook_lr <= 0:
            raise ValueError(f"optimizer: expected lr and codebook_lr > 0, got {self.lr} and {self.codebook_lr}")
        _check("optimizer", self.betas, self.eps, self.weight_decay, self.grad_clip)
        if self.schedule == "one_cycle" and self.betas[0] + BETA1_RANGE >= 1:
            raise ValueError(
                f"optimizer: expected the first of betas below {1 - BETA1_RANGE} with schedule=one_cycle, which adds "
                f"up to {BETA1_RANGE}, got {self.betas[0]}"
            )
        if self.clip_together and self.grad_clip is None:
            raise ValueError("optimizer: expected a grad_clip with clip_together, got null")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptimizerConfig:
    """AdamW of the discriminator; its learning rate follows the tokenizer's schedule."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0  # largest norm of its gradient

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"discriminator_optimizer: expected lr > 0, got {self.lr}")
        _check("discriminator_optimizer", self.betas, self.eps, self.weight_decay, self.grad_clip)


def _check(name: str, betas: tuple[float, float], eps: float, weight_decay: float, grad_clip: float | None) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{name}: expected betas in [0, 1), got {list(betas)}")
    if weight_decay < 0:
        raise ValueError(f"{name}: expected weight_decay >= 0, got {weight_decay}")
    if eps <= 0:
        raise ValueError(f"{name}: expected eps > 0, got {eps}")
    if grad_clip is not None and grad_clip <= 0:
        raise ValueError(f"{name}: expected grad_clip > 0 or null, got {grad_clip}")


def build_optimizer(tokenizer: ImageTokenizer, config: OptimizerConfig) -> torch.optim.AdamW:
    """Four groups: weights (decayed), biases and norms, codes, the weight of a linear map on the codes (decayed).

    `group["peak_lr"]` is the peak of its learning rate. `clip_gradients` takes the last two as the codebook.
    """
    codebook = tokenizer.quantizer.codebook_parameters()
    ours = {id(parameter) for parameter in codebook}
    maps = {id(module.weight) for module in tokenizer.quantizer.modules() if isinstance(module, nn.Linear)}
    rest = [p for p in tokenizer.parameters() if p.requires_grad and id(p) not in ours]
    groups = [
        *_by_decay(rest, config.lr, config.weight_decay),
        _group([p for p in codebook if id(p) not in maps], config.codebook_lr, 0.0),
        _group([p for p in codebook if id(p) in maps], config.codebook_lr, config.weight_decay),
    ]
    return _adamw(groups, config)


def build_discriminator_optimizer(discriminator: nn.Module, config: DiscriminatorOptimizerConfig) -> torch.optim.AdamW:
    """Two groups: weights (decayed), biases and norms."""
    parameters = [p for p in discriminator.parameters() if p.requires_grad]
    return _adamw(_by_decay(parameters, config.lr, config.weight_decay), config)


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig | DiscriminatorOptimizerConfig) -> torch.optim.AdamW:
    fused = any(parameter.is_cuda for group in groups for parameter in group["params"])  # one kernel for all
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def _by_decay(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    return [
        _group([p for p in parameters if p.ndim > 1], lr, weight_decay),
        _group([p for p in parameters if p.ndim <= 1], lr, 0.0),
    ]


def _group(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": parameters, "peak_lr": lr, "weight_decay": weight_decay}


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, config: ScheduleConfig) -> None:
    """Learning rates and, where the schedule moves it, beta1, as they are at `step`, counted from 0."""
    for group in optimizer.param_groups:
        factor, beta1 = schedule(step, steps, config, optimizer.defaults["betas"][0])
        group["lr"] = factor * group["peak_lr"]
        if config.schedule == "one_cycle":
            group["betas"] = (beta1, group["betas"][1])


def clip_gradients(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> tuple[Tensor, Tensor]:
    """Bounds the gradients' norms; returns them as they were, the model's and the codebook's (0 of a frozen one)."""
    groups = [group["params"] for group in optimizer.param_groups]
    parts = [[*groups[0], *groups[1]], [*groups[2], *groups[3]]]
    norms = [gradient_norm(part) for part in parts]
    if config.grad_clip is not None and config.clip_together:
        together = torch.stack([norm.to(norms[0].device) for norm in norms]).norm()
        nn.utils.clip_grads_with_norm_([*parts[0], *parts[1]], config.grad_clip, together)
    elif config.grad_clip is not None:
        for part, norm in zip(parts, norms, strict=True):
            nn.utils.clip_grads_with_norm_(part, config.grad_clip, norm)
    return norms[0], norms[1].to(norms[0].device)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients together."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


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
        if key == "step":  # a number, which a fused optimizer keeps beside the parameter
            fused = optimizer.defaults["fused"]
            place = torch.empty_like(value, device=parameter.device if fused else None)
        else:  # takes the parameter's memory layout too: another may round otherwise
            place = torch.empty_like(parameter)
        state.setdefault(parameter, {})[key] = place.detach().copy_(value)
    optimizer.state.clear()
    optimizer.state.update(state)
