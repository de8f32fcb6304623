"""Figure 5 of the Wasserstein VQ paper: codebooks that start at mean 0 while the features' mean is 0 to 8.

figure5_methods.py has the constants and says where they deviate from the published ones and why.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqdm_cuda import VectorQuantizer, criterion_triple, wasserstein_loss
from vqdm_train.experiments.common import Files, measure
from vqdm_train.experiments.figure5_methods import FULL, METHODS, QUICK, SETTINGS, Settings
from vqdm_train.experiments.figure5_report import cell_key, conclude, draw

__all__ = ["FULL", "QUICK", "SETTINGS", "run"]


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = [(method, mean) for method, means in settings.means.items() for mean in means]
    paper, uniform = settings.code_dim != FULL.code_dim, settings.distribution == "uniform"
    return measure(
        "figure5" + "-paper" * paper + "-uniform" * uniform,
        out,
        settings,
        {cell_key(method, mean): partial(_train, settings, method, mean) for method, mean in cells},
        partial(conclude, settings),
        partial(draw, settings),
        plan=("means", "curve_mean"),
        constants={cell_key(method, mean): _constants(settings, method) for method, mean in cells},
    )


def _constants(settings: Settings, name: str) -> dict[str, Any]:
    """All that makes a method what it is: a cell of other constants is measured again."""
    method = METHODS[name]
    with torch.random.fork_rng(devices=[]):
        quantizer = method.quantizer(settings)
    own = {"quantizer": quantizer.config, "lr": method.lr, "fit_from": method.fit_from, "decay": method.decay}
    return own | ({} if method.num_features is None else {"num_features": method.num_features})


def _train(settings: Settings, name: str, mean: float) -> dict[str, Any]:
    """One codebook. Every method and mean starts from the same codes and sees the same features, but for the mean."""
    method = METHODS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        quantizer = method.quantizer(settings)
    features = torch.Generator().manual_seed(settings.seed + 1)
    num_features = method.num_features or settings.num_features
    validation = _features(settings, settings.num_validation, torch.Generator().manual_seed(settings.seed + 2)) + mean
    parameters = quantizer.codebook_parameters()
    lr = settings.lr_factor * method.lr
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum) if parameters else None
    curve: dict[str, list[float]] = {"step": [0], **_metrics(validation, quantizer.codebook)}
    fit_weight = quantizer.codebook_weight if isinstance(quantizer, VectorQuantizer) else 0.0
    for step in range(1, settings.steps + 1):
        if isinstance(quantizer, VectorQuantizer):
            quantizer.codebook_weight = fit_weight if step > method.fit_from * settings.steps else 0.0
        z = _features(settings, num_features, features) + mean
        loss = quantizer(z).loss
        if optimizer is not None:
            decay = method.decay * settings.steps
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (settings.steps + 1 - step) / max(decay, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % settings.eval_every == 0 or step == settings.steps:
            curve["step"].append(step)
            for criterion, values in _metrics(validation, quantizer.codebook).items():
                curve[criterion] += values
    last = {criterion: curve[criterion][-1] for criterion in "EUCW"}
    return {"method": name, "mean": mean, **last, "curve": curve}


def _features(settings: Settings, number: int, generator: torch.Generator) -> Tensor:  # [number, d], of mean 0
    if settings.distribution == "uniform":
        return 2 * torch.rand(number, settings.code_dim, generator=generator) - 1
    return torch.randn(number, settings.code_dim, generator=generator)


@torch.no_grad()
def _metrics(z: Tensor, e: Tensor) -> dict[str, list[float]]:
    E, U, C = criterion_triple(z, e)
    return {name: [float(f"{float(x):.6g}")] for name, x in zip("EUCW", (E, U, C, wasserstein_loss(z, e)), strict=True)}
