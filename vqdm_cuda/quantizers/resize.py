"""Resizing of feature maps as two small matrix products.

    y[b, i, j, c] = sum_p sum_q rows[i, p] cols[j, q] x[b, p, q, c]

Area averaging and bicubic interpolation are separable and linear, so the matrices are what `interpolate` makes of the
unit vectors. Products keep channels last, need no permutation, and their gradients are products again: deterministic on
every backend, where the gradients of `interpolate` on CUDA are sums in the order of arrival. They run in float64, since
those of float32 may be rounded to TF32 or bfloat16 by a global switch of torch's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Pyramid", "resize", "resize_matrix"]


def resize_matrix(n_in: int, n_out: int, mode: str) -> Tensor:
    """[n_out, n_in] float64 on the CPU: `interpolate` of mode "area" or "bicubic" (corners not aligned) on one axis."""
    units = torch.eye(n_in, dtype=torch.float64, device="cpu").view(1, n_in, n_in, 1)  # channel p is unit vector p
    align_corners = False if mode == "bicubic" else None
    return F.interpolate(units, (n_out, 1), mode=mode, align_corners=align_corners)[0, :, :, 0].T.contiguous()


def resize(
    x: Tensor,  # [B, h, w, C] float32 or float64
    rows: Tensor,  # [h2, h] float64
    cols: Tensor,  # [w2, w] float64
) -> Tensor:
    """[B, h2, w2, C] in x's type, rounded once."""
    B, h, w, C = x.shape
    y = torch.matmul(rows, x.double().reshape(B, h, w * C)).view(B, rows.shape[0], w, C)
    return torch.matmul(cols, y).to(x.dtype)


class Pyramid(nn.Module):
    """The resize matrices between the last of several grids and each of them: area down, bicubic up."""

    def __init__(self, grids: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.grids = grids
        # All matrices end to end. Not saved: the grids determine them.
        self.matrices: Tensor
        self.register_buffer("matrices", self._matrices(), persistent=False)

    def resizers(self) -> list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
        """Of each grid the functions (down, up); identities where it has the last grid's size."""
        shapes = [shape for grid in self.grids for shape in self._shapes(grid)]
        parts = self.matrices.split([rows * cols for rows, cols in shapes])
        matrices = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [
            (_identity, _identity)
            if grid == self.grids[-1]
            else (_by(*matrices[i : i + 2]), _by(*matrices[i + 2 : i + 4]))
            for i, grid in zip(range(0, len(matrices), 4), self.grids, strict=True)
        ]

    def _shapes(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """[out, in] of the row and column matrices down, then up."""
        (h, w), (H, W) = grid, self.grids[-1]
        return (h, H), (w, W), (H, h), (W, w)

    def _matrices(self) -> Tensor:
        modes = ("area", "area", "bicubic", "bicubic")
        return torch.cat(
            [
                resize_matrix(n_in, n_out, mode).view(-1)
                for grid in self.grids
                for (n_out, n_in), mode in zip(self._shapes(grid), modes, strict=True)
            ]
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Pyramid":
        super()._apply(fn, recurse)
        # A cast of the model to half precision must not round the matrices, nor to_empty() lose them.
        self.matrices = self._matrices().to(self.matrices.device)
        return self


def _by(rows: Tensor, cols: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: resize(x, rows, cols)


def _identity(x: Tensor) -> Tensor:
    return x
