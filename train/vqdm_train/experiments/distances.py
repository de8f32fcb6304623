"""Three distances between Gaussians as matching losses: Wasserstein, Kullback-Leibler, Bhattacharyya.

The appendix of the Wasserstein VQ paper gives the latter two (Lemmas 5 and 6) and says why the paper does not use them:
both need covariances of full rank. Here a codebook that starts at N(0, I) is moved by one of the three alone, from
moments of fresh features in every step, towards features that lie elsewhere, are wider or narrower, lie (nearly) in a
subspace, or come in fewer than d + 1 a step. KL is that of the features from the codebook.

The gradients differ in size by orders of magnitude, so each loss has the best of several learning rates (by its last
E), and those that ended early, in an error or a loss that is not finite, are counted. E, U and C are of held-out
features; a codebook of as many features as it has codes, which needs no training, stands beside them.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vqdm_cuda import criterion_triple, gaussian_bhattacharyya, gaussian_kl, moments, wasserstein_loss
from vqdm_train.experiments.common import COLORS, Conclusion, Files, Results, log_axis, measure, new_axes

__all__ = ["CASES", "FULL", "LOSSES", "QUICK", "Settings", "run"]


@dataclasses.dataclass(frozen=True)
class Case:
    """Features mean + N(0, diag(std^2)), `std` for the first dimensions and `last_std` for the last two."""

    mean: float = 0.0
    std: float = 1.0
    last_std: float | None = None
    num_features: int | None = None

    def draw(self, number: int, d: int, generator: torch.Generator) -> Tensor:  # [number, d]
        std = torch.full((d,), self.std)
        if self.last_std is not None:
            std[-2:] = self.last_std
        return self.mean + std * torch.randn(number, d, generator=generator)


CASES = {
    "mean 2": Case(mean=2),
    "mean 8": Case(mean=8),
    "5 times wider": Case(std=5),
    "20 times narrower": Case(std=0.05),
    "nearly rank d - 2": Case(last_std=1e-2),
    "rank d - 2": Case(last_std=0),
    "mean 2, 4 a step": Case(mean=2, num_features=4),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All constants."""

    codebook_size: int = 1024
    code_dim: int = 8
    num_features: int = 2048  # fresh ones in every step, but in the case of few
    num_validation: int = 20_000
    steps: int = 300
    eval_every: int = 10
    # Times K: the moments' gradients reach a code divided by K. 0.005 is 1.5 times figure5's 10 * 3 / 16384.
    learning_rates: tuple[float, ...] = (0.00005, 0.0005, 0.005, 0.05)
    momentum: float = 0.9
    cases: tuple[str, ...] = tuple(CASES)
    seed: int = 0


FULL = Settings()
QUICK = Settings(num_features=512, num_validation=5000, steps=100, learning_rates=(0.0005, 0.005, 0.05))


def _wasserstein(z: Tensor, e: Tensor) -> Tensor:
    return wasserstein_loss(z, e, grad_to="codebook")


def _kl(z: Tensor, e: Tensor) -> Tensor:
    return gaussian_kl(*moments(z), *moments(e))


def _bhattacharyya(z: Tensor, e: Tensor) -> Tensor:
    return gaussian_bhattacharyya(*moments(z), *moments(e))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Wasserstein": _wasserstein,
    "KL": _kl,
    "Bhattacharyya": _bhattacharyya,
}


def run(out: Path, settings: Settings = FULL) -> Files:
    """Measures, concludes and draws into `out`; goes on where a killed run with these settings stopped."""
    cells = {f"{case}, {loss}": partial(_cell, settings, case, loss) for case in settings.cases for loss in LOSSES}
    cells |= {f"{case}, features as codes": partial(_features_as_codes, settings, case) for case in settings.cases}
    return measure(
        "distances", out, settings, cells, partial(_conclude, settings), partial(_draw, settings), plan=("cases",)
    )


def _cell(settings: Settings, case: str, loss: str) -> dict[str, Any]:
    """The best of the learning rates; where none was finite to the end, the one that came furthest."""
    runs = [_train(settings, CASES[case], LOSSES[loss], lr) for lr in settings.learning_rates]
    whole = [run for run in runs if run["error"] is None]
    best = min(whole, key=lambda run: run["E"]) if whole else max(runs, key=lambda run: run["stopped"])
    return {"case": case, "loss": loss, "failed": len(runs) - len(whole), "tried": len(runs), **best}


def _train(settings: Settings, case: Case, loss: Callable[[Tensor, Tensor], Tensor], lr: float) -> dict[str, Any]:
    K, d = settings.codebook_size, settings.code_dim
    generator = torch.Generator().manual_seed(settings.seed)
    e = torch.randn(K, d, generator=generator).requires_grad_()
    validation = case.draw(settings.num_validation, d, generator)
    optimizer = torch.optim.SGD([e], lr=lr * K, momentum=settings.momentum)
    curve: dict[str, list[float]] = {"step": [], "loss": [], "E": [], "U": [], "C": []}
    error = None
    for step in range(settings.steps + 1):
        z = case.draw(case.num_features or settings.num_features, d, generator)
        try:
            value = loss(z, e)
        except ValueError as refused:
            error = str(refused)
            break
        if not math.isfinite(value.item()):
            error = "the loss is not finite"
            break
        if step % settings.eval_every == 0 or step == settings.steps:
            with torch.no_grad():
                criteria = criterion_triple(validation, e)
            curve["step"].append(step)
            for name, x in zip(("loss", "E", "U", "C"), (value.detach(), *criteria), strict=True):
                curve[name].append(float(f"{float(x):.5g}"))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    last = {x: curve[x][-1] if curve[x] else None for x in "EUC"}
    return {"lr": lr, "error": error, "stopped": step, **last, "curve": curve}


def _features_as_codes(settings: Settings, case: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(settings.seed + 1)
    e = CASES[case].draw(settings.codebook_size, settings.code_dim, generator)
    z = CASES[case].draw(settings.num_validation, settings.code_dim, generator)
    return {"case": case, **{x: float(f"{float(v):.5g}") for x, v in zip("EUC", criterion_triple(z, e), strict=True)}}


def _conclude(settings: Settings, results: Results) -> Conclusion:
    summary, verdict = [], []
    for case in settings.cases:
        ideal = results[f"{case}, features as codes"]
        told = []
        for loss in LOSSES:
            cell = results[f"{case}, {loss}"]
            summary.append({name: cell[name] for name in ("case", "loss", "lr", "failed", "tried", "error", *"EUC")})
            if cell["error"] is None:
                blown = f", {cell['failed']} of {cell['tried']} learning rates ended early" if cell["failed"] else ""
                told.append(f"{loss} E {cell['E']:.3g}, U {cell['U']:.1%}, C {cell['C']:.0f}{blown}")
            elif cell["stopped"] == 0:
                told.append(f"{loss} undefined ({cell['error']})")
            else:
                told.append(f"{loss} ended at step {cell['stopped']} at best ({cell['error']})")
        told.append(f"features as codes E {ideal['E']:.3g}, U {ideal['U']:.1%}, C {ideal['C']:.0f}")
        verdict.append(f"{case}: {'; '.join(told)}.")
    whole = {loss: sum(row["error"] is None for row in summary if row["loss"] == loss) for loss in LOSSES}
    told = [f"{n} ({loss})" for loss, n in whole.items()]
    verdict.append(f"Defined to the last step in {', '.join(told)} of {len(settings.cases)} cases.")
    return Conclusion(summary, verdict)


def _draw(settings: Settings, results: Results) -> Figure:
    figure, axes = new_axes(
        4,
        len(settings.cases),
        size=(2.45 * len(settings.cases) + 0.8, 9.0),
        title=f"Codes from N(0, I) moved by one distance alone: K = {settings.codebook_size}, d = {settings.code_dim}",
    )
    labels = {"loss": "loss", "E": "E, quantization error", "U": "U, codes used [%]", "C": "C, perplexity"}
    for column, case in enumerate(settings.cases):
        for row, (name, label) in enumerate(labels.items()):
            ax = axes[len(settings.cases) * row + column]
            scale = 100 if name == "U" else 1
            for loss, color in zip(LOSSES, COLORS, strict=False):
                curve = results[f"{case}, {loss}"]["curve"]
                ax.plot(curve["step"], [scale * value for value in curve[name]], color=color, label=loss)
            if name != "loss":
                level = scale * results[f"{case}, features as codes"][name]
                ax.axhline(level, color="black", linewidth=1, linestyle="--", label="features as codes")
            if name in ("loss", "E"):
                log_axis(ax)
            if name == "U":
                ax.set_ylim(-3, 103)
            ax.set(xlim=(0, settings.steps))
            if row == 0:
                refused = [loss for loss in LOSSES if results[f"{case}, {loss}"]["stopped"] == 0]
                ax.set_title(f"{case}\n({', '.join(refused)}: undefined)" if refused else case, fontsize=9)
            if row == 3:
                ax.set_xlabel("step")
            if column == 0:
                ax.set_ylabel(label)
    handles, names = axes[len(settings.cases)].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure
