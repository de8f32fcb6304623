"""Codes in the plane: their Voronoi cells, each as dark as its code is used, with features and codes on top."""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from vqdm_cuda import nearest_code
from vqdm_train.experiments.common import COLORS

__all__ = ["draw_cells", "handles"]

_PIXELS = 600  # along the longer side
_FULL = torch.tensor([0.14, 0.40, 0.69])  # of a code that all features take: COLORS[0]
_NONE = torch.tensor([0.90, 0.90, 0.90])
_BORDER = torch.tensor([0.35, 0.38, 0.42])
_CODE: dict[str, Any] = {"marker": "s", "markeredgecolor": COLORS[0], "markersize": 8}
_FEATURE: dict[str, Any] = {"marker": "o", "color": COLORS[1]}


def draw_cells(
    ax: Axes,
    z: Tensor,  # [N, 2]
    e: Tensor,  # [K, 2]
    *,
    size: tuple[float, float],  # of the picture, whose lower left corner is the origin
    feature_size: float = 4,
) -> None:
    """A picture of nearest codes; a cell that no feature lies in is grey, and its code white."""
    p = torch.bincount(nearest_code(z, e)[1], minlength=len(e)) / len(z)
    columns, rows = (round(_PIXELS * side / max(size)) for side in size)
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) * size[1] / rows, (torch.arange(columns) + 0.5) * size[0] / columns, indexing="ij"
    )
    cell = nearest_code(torch.stack([x, y], -1).reshape(-1, 2), e)[1].reshape(rows, columns)
    # From 0.12 to 0.65 of the full colour: a code used once shows, and features can be seen on any.
    shade = (0.12 + 0.53 * p)[:, None]
    colors = torch.where(p[:, None] > 0, 1 - shade * (1 - _FULL), _NONE)
    image = colors[cell]
    border = torch.zeros_like(cell, dtype=torch.bool)
    border[:, 1:] |= cell[:, 1:] != cell[:, :-1]
    border[1:] |= cell[1:] != cell[:-1]
    image[border] = _BORDER
    ax.imshow(image.numpy(), origin="lower", extent=(0, size[0], 0, size[1]), interpolation="bilinear")
    ax.plot(*z.numpy().T, linestyle="none", markersize=feature_size, **_FEATURE)
    for (x_k, y_k), share in zip(e.tolist(), p.tolist(), strict=True):
        ax.plot(x_k, y_k, markerfacecolor=COLORS[0] if share else "white", **_CODE)
    ax.set(xlim=(0, size[0]), ylim=(0, size[1]), aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def handles() -> list[Line2D]:
    """How features and codes look, for a legend."""
    return [
        Line2D([], [], linestyle="none", label="feature", **_FEATURE),
        Line2D([], [], linestyle="none", markerfacecolor=COLORS[0], label="code in use", **_CODE),
        Line2D([], [], linestyle="none", markerfacecolor="white", label="code that no feature selects", **_CODE),
    ]
