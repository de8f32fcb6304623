"""The recipes of docs/wasserstein.md, run as they stand there, against each published generation's formulas in float64.

The formulas are written out with torch.linalg.eigh and autograd; no function of the library takes part. They are
computed twice: without the constants that keep the published derivatives finite, which the library does not need, and
with them, to say how much they matter.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cases
import vqdm_cuda
from vqdm_cuda import MultiScaleQuantizer, WassersteinQuantizer

PAGE = Path(__file__).parents[2] / "docs" / "wasserstein.md"
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
# Largest relative difference of values and of gradients: the same formula in another order of operations, and the
# formula with constants of 1e-8 under roots and 1e-6 on diagonals.
EXACT, WITH_CONSTANTS = 1e-12, 1e-5


def recipe(title: str, **replace: str) -> Any:
    """What the code under that title makes, in float64; `replace` shortens a queue, so that a test can fill it."""
    torch.manual_seed(0)
    text = PAGE.read_text()
    section = text[text.index(f"\n## {title}\n") :]
    match = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert match
    code = match.group(1)
    for name, value in replace.items():
        code, count = re.subn(rf"{name}=\d+", f"{name}={value}", code)
        assert count == 1
    names: dict[str, Any] = dict(vars(vqdm_cuda))
    exec(code, names)
    assert all(group["params"] for group in names.get("groups", []))
    return names["quantizer"].double().train()


def rows_of(z: Tensor) -> Tensor:  # [B, d, h, w] -> [B h w, d]
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def features(d: int, size: int = 16, batch: int = 1, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    rows = cases.features(batch * size * size, d, scale=scale, offset=offset)
    return rows.view(batch, size, size, d).permute(0, 3, 1, 2).contiguous().requires_grad_()


def assert_agree(loss: Tensor, expected: Tensor, leaves: list[Tensor], relative: float) -> None:
    cases.assert_close(loss, expected, relative)
    got = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, leaves, retain_graph=True, materialize_grads=True)
    for a, b in zip(got, wanted, strict=True):
        cases.assert_close(a, b, relative)


# the published formulas ----------------------------------------------------------------------------------------------


def distance_to_gaussian(z: Tensor, sigma: float, *, constants: bool) -> Tensor:
    """Seed paper: sqrt(||mu||^2 + tr S - 2 sigma tr S^1/2 + d sigma^2 + 1e-8), covariance by N."""
    small = 1e-8 if constants else 0.0
    centred = z - z.mean(0)
    S = centred.T @ centred / len(z)
    values, Q = torch.linalg.eigh(S)
    root = Q @ (values.relu() + small).sqrt().diag() @ Q.T
    spread = S.trace() - 2 * sigma * root.trace() + z.shape[1] * sigma**2
    return (z.mean(0).square().sum() + spread.relu() + 1e-8).sqrt()


def distance_to_codes(
    z: Tensor,  # [N, d] constants
    e: Tensor,  # [K, d]
    *,
    divide_by: Tensor | None = None,
    factor: float = 1.0,
    ridge: float = 0.0,
    constants: bool,
) -> Tensor:
    """Both later generations: covariances by N - 1, the root of the features' one a constant."""
    small = 1e-8 if constants else 0.0
    z = z.detach()
    if divide_by is not None:
        std = divide_by.detach().std(0).max() + small
        z, e = z / std, e / std
    ridges = (ridge if constants else 0.0) * torch.eye(z.shape[1], dtype=z.dtype)
    S_z, S_e = factor * (z.T.cov() + ridges), e.T.cov() + ridges
    values, Q = torch.linalg.eigh(S_z)
    root = Q @ (values.relu() + small).sqrt().diag() @ Q.T
    roots = (torch.linalg.eigh(root @ S_e @ root)[0].relu() + small).sqrt()
    spread = (S_z + S_e).trace() - 2 * roots.sum()
    return ((z.mean(0) - e.mean(0)).square().sum() + spread.relu() + 1e-10).sqrt()


def scan(z: Tensor, e: Tensor, phi: Any = None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """For each scale the residual's rows [N_t, d], the codes' rows, and the reconstruction so far [B, d, 16, 16].

    Residuals have gradient to z, reconstructions to codes and phi.
    """
    residuals, codes, reconstructions = [], [], []
    z_dec = torch.zeros_like(z)
    for t, side in enumerate(SCALES):
        small = F.interpolate(z - z_dec.detach(), (side, side), mode="area")
        residuals.append(rows_of(small))
        nearest = torch.cdist(residuals[-1].detach(), e.detach()).argmin(1)
        codes.append(e[nearest])
        grid = codes[-1].view(len(z), side, side, -1).permute(0, 3, 1, 2)
        up = F.interpolate(grid, (16, 16), mode="bicubic") if side < 16 else grid
        if phi is not None:
            places = np.linspace(1 / 12, 1 - 1 / 12, 4)  # of VAR's four shared convolutions
            up = 0.5 * up + 0.5 * phi[int(np.abs(places - t / 9).argmin())](up)
        z_dec = z_dec + up
        reconstructions.append(z_dec)
    return residuals, codes, reconstructions


# the generations -----------------------------------------------------------------------------------------------------


def test_seed_paper() -> None:
    q = recipe("The seed paper")
    assert q.codebook_parameters() == []
    assert q.codebook.std().item() == pytest.approx(0.05, rel=0.01)
    z = features(16, batch=2, scale=0.08, offset=0.02)
    loss = q(z).loss
    residuals, codes, reconstructions = scan(z, q.codebook)
    quantization = (z - reconstructions[-1].detach()).square().sum(1).mean()
    for t in range(10):  # each scale overwrites the one before
        commitment = (residuals[t] - codes[t].detach()).square().sum(1).mean() * SCALES[t]
    commitment = commitment / sum(SCALES)
    for constants, relative in ((False, EXACT), (True, WITH_CONSTANTS)):
        matching = distance_to_gaussian(torch.cat(residuals), 0.05, constants=constants)
        matching = matching + distance_to_gaussian(residuals[-1], 0.05, constants=constants)
        assert_agree(loss, 0.2 * quantization + 0.2 * commitment + 0.3 * matching, [z], relative)


def test_one_scale() -> None:
    q = recipe("arXiv 2506.15078, one scale", queue_size="1024")
    assert isinstance(q, WassersteinQuantizer)
    assert q.codebook.std().item() == pytest.approx(0.01, rel=0.01)
    seen = torch.zeros(0, 8, dtype=torch.float64)
    for step in range(6):  # full after four
        z = features(8, offset=0.1 * step)
        loss = q(z).loss
        rows = rows_of(z)
        seen = torch.cat([seen, rows.detach()])[-1024:]
        z_q = q.weight[torch.cdist(rows, q.weight).argmin(1)]
        fit = 0.1 * F.mse_loss(z_q.detach(), rows) + 1.0 * F.mse_loss(z_q, rows.detach())
        for constants, relative in ((False, EXACT), (True, WITH_CONSTANTS)):
            matching = distance_to_codes(seen, q.weight, divide_by=seen, constants=constants)
            assert_agree(loss, fit + 0.5 * matching, [z, q.weight], relative)


def test_ten_scales() -> None:
    """The distance; the other terms are not those that were published."""
    q = recipe("arXiv 2506.15078, ten scales", queue_size="1360")
    assert isinstance(q, MultiScaleQuantizer)
    assert isinstance(q.inner, WassersteinQuantizer)
    assert q.config["scale_weights"] == list(SCALES)
    q.inner.commitment_weight = q.inner.codebook_weight = 0.0
    e = q.codebook
    seen = torch.zeros(0, 8, dtype=torch.float64)
    for _ in range(3):  # full after two
        z = features(8, scale=0.05)
        loss = q(z).loss
        residuals, _, _ = scan(z, e)
        seen = torch.cat([seen, *residuals])[-1360:].detach()
        for constants, relative in ((False, EXACT), (True, WITH_CONSTANTS)):
            matching = distance_to_codes(seen, e, divide_by=e, ridge=1e-6, constants=constants)
            assert_agree(loss, 0.5 * matching, [z, e], relative)


def test_2026_release() -> None:
    q = recipe("The 2026 release", queue_size="1360")
    e = q.codebook
    assert e.abs().max().item() == pytest.approx(1 / 4096, rel=1e-3)
    importance = (1, 1, 1, 2, 2, 2, 3, 3, 5, 5)
    leaves = [e, *q.phi.parameters()]
    assert [len(group["params"]) for group in q.parameter_groups(lr=1e-3, codebook_lr=5e-3)] == [8, 1]
    seen = torch.zeros(0, 32, dtype=torch.float64)
    for step in range(3):  # full after two
        if step == 1:  # codes that have left their start, where the published constants are larger than they
            torch.nn.init.normal_(e, std=0.3)
        z = features(32)
        loss = q(z).loss
        residuals, _, reconstructions = scan(z, e, q.phi)
        fit = sum(w * F.mse_loss(f, z.detach()) for w, f in zip(importance, reconstructions, strict=True)) / 25
        seen = torch.cat([seen, *residuals])[-1360:].detach()
        matching = distance_to_codes(seen, e, factor=0.25, constants=False)
        assert_agree(loss, fit + 0.2 * matching, [z, *leaves], EXACT)
        if step > 0:
            matching = distance_to_codes(seen, e, factor=0.25, ridge=1e-6, constants=True)
            assert_agree(loss, fit + 0.2 * matching, leaves, WITH_CONSTANTS)
