"""Laws whose density's powers f^a, normalised, are known whole: products of equal laws in each of d dimensions.

Codes drawn from f^a have, as K grows, an expected squared distance to features from f of

    E K^(2/d) -> c_d B,   B = integral f h^(-2/d),   h = f^a / integral f^a

(Zador 1982; Graf & Luschgy 2000, section 9), finite where the integral is, with c_d = gamma(1 + 2/d) / V_d^(2/d) for
independent codes, V_d the volume of the unit ball. Optimal codes of that density have a smaller c_d, known in one
dimension, 1/12, and two, 5 / (18 sqrt 3), of hexagons. B is least at a = d/(d+2).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["LAWS", "OPTIMAL_CONSTANT", "Law", "optimal_power", "random_constant"]

# Of optimal codes, by d, where it is known.
OPTIMAL_CONSTANT = {1: 1 / 12, 2: 5 / (18 * math.sqrt(3))}


def random_constant(d: int) -> float:
    """c_d of independent codes."""
    ball = math.pi ** (d / 2) / math.gamma(1 + d / 2)
    return math.gamma(1 + 2 / d) / ball ** (2 / d)


def optimal_power(d: int) -> float:
    """Theorem 2's d / (d + 2)."""
    return d / (d + 2)


class Law(ABC):
    """A density f on the line; in d dimensions the product of d such."""

    support: tuple[float, float] = (0.0, 1.0)

    @abstractmethod
    def inverse(self, u: Tensor, power: float) -> Tensor:
        """The quantiles u of f^power, in u's shape."""

    @abstractmethod
    def cdf(self, x: Tensor, power: float) -> Tensor:
        """The distribution function of f^power at x."""

    @abstractmethod
    def integral(self, power: float) -> float:
        """Of f^power; infinite where it is. power may be negative."""

    @abstractmethod
    def moment_below(self, x: Tensor) -> Tensor:
        """Integral of t f(t) up to x."""

    def bound(self, d: int, power: float) -> float:
        """B, in d dimensions."""
        return (self.integral(1 - 2 * power / d) * self.integral(power) ** (2 / d)) ** d


class Gaussian(Law):
    """N(0, 1); f^a is N(0, 1/a)."""

    support = (-math.inf, math.inf)

    def inverse(self, u: Tensor, power: float) -> Tensor:
        return torch.special.ndtri(u) / math.sqrt(power)

    def cdf(self, x: Tensor, power: float) -> Tensor:
        return torch.special.ndtr(x * math.sqrt(power))

    def integral(self, power: float) -> float:
        return (2 * math.pi) ** ((1 - power) / 2) / math.sqrt(power) if power > 0 else math.inf

    def moment_below(self, x: Tensor) -> Tensor:
        return -torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


class Exponential(Law):
    """Proportional to exp(-4 x) on [0, 1]: bounded support, and 55 times denser at one end."""

    rate = 4.0

    def inverse(self, u: Tensor, power: float) -> Tensor:
        rate = power * self.rate
        return -torch.log1p(u * math.expm1(-rate)) / rate

    def cdf(self, x: Tensor, power: float) -> Tensor:
        rate = power * self.rate
        return torch.expm1(-rate * x) / math.expm1(-rate)

    def integral(self, power: float) -> float:
        scale = self.rate / -math.expm1(-self.rate)
        rate = power * self.rate
        return scale**power * (-math.expm1(-rate) / rate if rate else 1.0)

    def moment_below(self, x: Tensor) -> Tensor:
        y = self.rate * x
        return (1 - torch.exp(-y) * (1 + y)) / self.rate / -math.expm1(-self.rate)


class Ramp(Law):
    """2 x on [0, 1], Beta(2, 1): zero at one end. f^a is Beta(1 + a, 1)."""

    def inverse(self, u: Tensor, power: float) -> Tensor:
        return u ** (1 / (1 + power))

    def cdf(self, x: Tensor, power: float) -> Tensor:
        return x ** (1 + power)

    def integral(self, power: float) -> float:
        return 2**power / (1 + power) if power > -1 else math.inf

    def moment_below(self, x: Tensor) -> Tensor:
        return 2 * x**3 / 3


LAWS: dict[str, Law] = {"Gaussian": Gaussian(), "exponential": Exponential(), "ramp": Ramp()}
