"""Experiment theorems: laws and limits by integration, optimal codes that are known, and what the cells say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vqdm_train.experiments import powers, theorem1, theorem2
from vqdm_train.experiments.powers import LAWS, optimal_power

COMMITTED = Path(__file__).parents[2] / "docs/experiments/theorems.json"
DENSITIES = {
    "Gaussian": lambda x: torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    "exponential": lambda x: 4 * torch.exp(-4 * x) / (1 - math.exp(-4)),
    "ramp": lambda x: 2 * x,
}


def grid(law: str) -> tuple[Tensor, float]:
    """Middles of a fine grid over the support, and its step."""
    low, high = (-12.0, 12.0) if law == "Gaussian" else (0.0, 1.0)
    step = (high - low) / 400_000
    return low + step * (torch.arange(400_000, dtype=torch.float64) + 0.5), step


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("power", [0.4, 1.0, 1.6])
def test_powers_of_a_law_by_integration(law: str, power: float) -> None:
    x, step = grid(law)
    density = DENSITIES[law](x) ** power
    whole = float(density.sum() * step)
    assert LAWS[law].integral(power) == pytest.approx(whole, rel=1e-6)
    below = density.cumsum(0) * step / whole
    at = torch.tensor([150_000, 200_000, 210_000])
    torch.testing.assert_close(LAWS[law].cdf(x[at] + step / 2, power), below[at], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(LAWS[law].inverse(below[at], power), x[at] + step / 2, rtol=1e-5, atol=1e-8)
    if power == 1:
        moments = (x * density).cumsum(0) * step
        torch.testing.assert_close(LAWS[law].moment_below(x[at] + step / 2), moments[at], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("d", [1, 2, 8])
def test_the_limit_is_least_at_the_theorems_power(law: str, d: int) -> None:
    at = optimal_power(d)
    least = LAWS[law].bound(d, at)
    # Zador's constant: the norm of f in L^(d/(d+2)).
    assert least == pytest.approx(LAWS[law].integral(at) ** (d * (d + 2) / d))
    for other in (0.9 * at, 1.1 * at, 1.0):
        assert LAWS[law].bound(d, other) > least


def test_independent_codes_reach_their_constant() -> None:
    """E K^(2/d) of uniform codes on a torus, where there is no edge."""
    generator = torch.Generator().manual_seed(0)
    for d in (1, 2, 3):
        z, e = (torch.rand(400, 500, d, generator=generator) for _ in range(2))
        apart = (z[:, :1] - e).remainder(1)
        nearest = torch.minimum(apart, 1 - apart).square().sum(-1).amin(1)
        assert float(nearest.mean()) * 500 ** (2 / d) == pytest.approx(powers.random_constant(d), rel=0.2)


def test_optimal_codes_that_are_known() -> None:
    """Two codes of N(0, 1) are +-sqrt(2 / pi), four +-0.4528 and +-1.5104 (Max 1960)."""
    for K, expected in (
        (2, [-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)]),
        (4, [-1.5104, -0.4528, 0.4528, 1.5104]),
    ):
        start = torch.linspace(-3, 0.5, K, dtype=torch.float64)[:, None]
        e = theorem2._lloyd_on_the_line(LAWS["Gaussian"], start)
        torch.testing.assert_close(e[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-4)


def test_lloyd_ends_where_codes_are_means_of_their_features() -> None:
    z = torch.randn(200, 2)
    e = theorem2._lloyd(z, torch.cat([z[:5], torch.full((1, 2), 1e3)]), 100)
    nearest = torch.cdist(z, e).argmin(1)
    for k in range(5):
        torch.testing.assert_close(e[k], z[nearest == k].mean(0))
    assert e[5].tolist() == [1e3, 1e3]


def test_distance_of_codes_to_a_law() -> None:
    e = LAWS["ramp"].inverse((torch.arange(50, dtype=torch.float64) + 0.5) / 50, 0.3)
    assert theorem2._distance(LAWS["ramp"], e, 0.3) == pytest.approx(0.01)
    assert theorem2._distance(LAWS["ramp"], e, 1.0) > 0.1
    assert theorem2._distance(LAWS["ramp"], torch.tensor([0.0]), 1.0) == 1


def test_the_least_of_a_parabola() -> None:
    at = [0.1, 0.2, 0.5, 1.0, 2.0]
    assert theorem2._lowest(at, [math.exp(2 * math.log(a / 0.37) ** 2) for a in at]) == pytest.approx(0.37)
    assert theorem2._lowest(at, [1.0, 2.0, 3.0, 4.0, 5.0]) == 0.1


def test_support_decides_use_and_error() -> None:
    sizes: dict[str, Any] = {
        "codebook_size": 16,
        "nums_features": (256, 4096),
        "codebook_sizes": (16, 256),
        "num_features": 1000,
    }
    cells = {name: theorem1.measure_use_and_error(name, 1, **sizes, repeats=3, seed=0) for name in theorem1.CODES}
    for name, law in theorem1.CODES.items():
        unused, worst = cells[name]["unused"][-1][0], cells[name]["worst"][-1][0]
        assert (unused < 0.08) is law.full_use, name
        assert (worst < 0.01) is law.vanishing_error, name
    # The edge of the features is 0.3 from the narrower codes, 0.5 from the moved ones.
    assert cells["narrower"]["worst"][-1][0] == pytest.approx(0.09, abs=0.01)
    assert cells["moved"]["worst"][-1][0] == pytest.approx(0.25, abs=0.015)


def test_codes_and_features_lie_in_their_balls() -> None:
    generator = torch.Generator().manual_seed(0)
    for of in (1.0, 2.0):
        radius = theorem1._ball(20_000, 3, of, generator).norm(dim=1)
        assert float(radius.max()) <= 1 + 1e-6
        assert float((radius < 0.5).float().mean()) == pytest.approx(0.5 ** (3 / of), abs=0.015)


def test_committed_verdict() -> None:
    record = json.loads(COMMITTED.read_text())
    rows = [row for row in record["summary"]["theorem 2"] if row["codes"] == "optimal" and row["d"] == 1]
    assert len(rows) == len(LAWS)
    for row in rows:
        assert row["to_theorem"][0] < 0.3 * row["to_features"][0]
        assert row["E"][0] * row["K"] ** 2 == pytest.approx(row["limit"], rel=0.07)
