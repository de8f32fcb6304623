"""Finite scalar quantizer: each number of a vector is bounded and rounded on its own (FSQ, Mentzer et al. 2023).

With L levels, h = 1.001 (L - 1) / 2, o = 1/2 for an even L and 0 for an odd one, and s = atanh(o / h), for each number:

    b     = tanh(z + s) h - o                 from -L/2 or so to (L - 1)/2
    z_q   = round(b) / (L // 2)               dz_q/dz = h / (L // 2) (1 - tanh(z + s)^2): straight through the rounding
    index = sum_j (round(b_j) + L_j // 2) L_0 ... L_{j-1}                     the first dimension runs fastest

There is no loss. The rounding is decided by comparing z with the L - 1 numbers at which b is halfway between two
integers: no rounding of a tanh, which differs between devices and lengths of a loop, can move an index.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vqdm_cuda.quantizers.fixed import FixedQuantizer

__all__ = ["FiniteScalarQuantizer"]

# Rows of the constants: L, L // 2, s, h / (L // 2), and from there on the L - 1 thresholds.
_LEVEL, _HALF, _SHIFT, _SLOPE, _THRESHOLDS = range(5)


class FiniteScalarQuantizer(FixedQuantizer):
    """Quantises each of the d numbers of a vector to one of L_j values from -1 to 1; no codebook, no loss.

    The published sets of levels are [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5] and so on. An even L has
    one value more below zero than above it, so of 2 levels the lower one stands for all z below -3.8. On a threshold
    the lower value is taken, as the lowest is for NaN. The work grows with the largest L.

    Args:
        levels: L_j of each dimension, from 2 to 1000 each (above, the formula's 0.1 % of margin reach one value more);
            code_dim is how many there are, codebook_size their product, which is less than 2^31.
    """

    kind: ClassVar[str] = "finite_scalar"

    def __init__(self, levels: Sequence[int]) -> None:
        name = type(self).__name__
        if not isinstance(levels, Sequence) or not all(type(level) is int for level in levels):
            raise TypeError(f"{name}: expected levels to be a list of ints, got {levels!r}")
        if not levels or min(levels) < 2 or max(levels) > 1000:
            raise ValueError(f"{name}: expected levels, from 2 to 1000 each, got {list(levels)}")
        if math.prod(levels) >= 2**31:
            raise ValueError(
                f"{name}: expected levels whose product is less than 2^31, got {list(levels)} with {math.prod(levels)}"
            )
        self.levels = list(levels)
        super().__init__(math.prod(levels), len(levels))

    def _constants(self) -> Tensor:
        """[4 + most levels - 1, d]: the rows named above, then the thresholds; Inf where there are no more."""
        columns = []
        for level in self.levels:
            half, h, o = level // 2, 1.001 * (level - 1) / 2, 0.0 if level % 2 else 0.5
            shift = math.atanh(o / h)
            thresholds = [math.atanh((k - half + 0.5 + o) / h) - shift for k in range(level - 1)]
            columns.append([level, half, shift, h / half, *thresholds, *[math.inf] * (max(self.levels) - level)])
        return torch.tensor(columns, dtype=torch.float64, device="cpu").T.contiguous()

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "levels": self.levels}

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        tiles, constants = _tiled(rows.detach(), self.constants)
        digits = _digits(tiles, constants)
        codes = _codes(digits, constants).view(rows.shape).to(rows.dtype)
        return _ThroughBound.apply(rows, codes, constants), self._indices(digits.view(rows.shape)), {}

    @torch.no_grad()
    def assign(self, rows: Tensor) -> Tensor:
        return self._indices(_digits(*_tiled(rows, self.constants)).view(rows.shape))

    def lookup(self, indices: Tensor) -> Tensor:
        digits = []
        for level in self.levels:
            digits.append(indices % level)
            indices = indices // level
        rows = torch.stack(digits, 1)
        return _codes(*_tiled(rows, self.constants)).view(rows.shape)

    def fit_terms(self, z: Tensor, z_q: Tensor) -> dict[str, Tensor]:
        return {}

    def pass_gradient(self, z: Tensor, z_q: Tensor) -> Tensor:
        return _ThroughBound.apply(z, z_q, _tiled(z, self.constants)[1])

    def _indices(
        self,
        digits: Tensor,  # [N, d]
    ) -> Tensor:  # [N] int64
        levels = self.constants[_LEVEL].double()
        return torch.mv(digits.double(), levels.cumprod(0) / levels).long()  # whole numbers below 2^31: exact

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def _tiled(
    rows: Tensor,  # [N, d]
    constants: Tensor,  # [C, d]
) -> tuple[Tensor, Tensor]:  # [N / M, M d], [C, M d]
    """M rows side by side, and the constants as often: a CPU's loops run along M d numbers, not along d."""
    N, d = rows.shape
    M = math.gcd(N, 256) if rows.device.type == "cpu" and not torch.compiler.is_compiling() else 1
    return rows.reshape(N // M, M * d), constants[:, None].expand(-1, M, -1).reshape(-1, M * d)


def _digits(
    tiles: Tensor,  # [..., M d]
    constants: Tensor,  # [C, M d]
) -> Tensor:
    """How many thresholds lie below each number: from 0 to L - 1, in the numbers' type."""
    digits, above = torch.zeros_like(tiles), torch.empty_like(tiles)
    for threshold in constants[_THRESHOLDS:]:
        digits += torch.gt(tiles, threshold, out=above)
    return digits


def _codes(
    digits: Tensor,  # [..., M d] of any type
    constants: Tensor,  # [C, M d]
) -> Tensor:
    """The numbers that these digits stand for, in the constants' type."""
    half = constants[_HALF]
    return (digits.to(half.dtype) - half) / half


class _ThroughBound(torch.autograd.Function):
    """z_q as a value, with the derivative of the bound to z."""

    @staticmethod
    def forward(ctx, z: Tensor, z_q: Tensor, constants: Tensor) -> Tensor:
        ctx.save_for_backward(z, constants)
        return z_q.view_as(z_q)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        z, constants = ctx.saved_tensors
        shape = -1, constants.shape[1]
        bound = (z.reshape(shape) + constants[_SHIFT]).tanh_()
        pulled = torch.ops.aten.tanh_backward(grad.reshape(shape) * constants[_SLOPE], bound)
        return pulled.view(z.shape).to(z.dtype), None, None
