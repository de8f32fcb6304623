"""AdamW with the codebook in its own parameter group, and the learning rate as a pure function of the step.

    lr(step) = lr * min(1, (step + 1) / warmup_steps) * (final + (1 - final) * (1 + cos(pi * step / steps)) / 2)

Weight decay acts on matrices and kernels alone: never on biases, norms or the codebook.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqdm_cuda import ImageTokenizer

__all__ = ["OptimizerConfig", "build_optimizer", "load_optimizer", "optimizer_tensors", "schedule"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, warm-up and cosine. A codebook_lr of its own is what lets codes move as fast as matching needs."""

    lr: float = 3e-4
    codebook_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.005
    warmup_steps: int = 50
    final_lr_ratio: float = 0.1  # the cosine ends at this part of the peak
    grad_clip: float = 1.0  # largest norm of the model's gradient, and, separately, of the codebook's

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
        if self.grad_clip <= 0:
            raise ValueError(f"optimizer: expected grad_clip > 0, got {self.grad_clip}")


def schedule(step: int, steps: int, config: OptimizerConfig) -> float:
    """The factor on every learning rate at `step`, counted from 0, of `steps`."""
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    return warmup * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def build_optimizer(tokenizer: ImageTokenizer, config: OptimizerConfig) -> torch.optim.AdamW:
    """Three groups, in this order: weights (decayed), biases and norms, codebook; `group["peak_lr"]` is the peak."""
    codebook = tokenizer.quantizer.codebook_parameters()
    ours = {id(parameter) for parameter in codebook}
    rest = [p for p in tokenizer.parameters() if p.requires_grad and id(p) not in ours]
    groups: list[dict[str, object]] = [
        {"params": [p for p in rest if p.ndim > 1], "peak_lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "peak_lr": config.lr, "weight_decay": 0.0},
        {"params": codebook, "peak_lr": config.codebook_lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8)


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
