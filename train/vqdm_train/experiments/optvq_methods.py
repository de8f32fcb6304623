"""What the experiments on OptVQ share: its two ways to assign codes, how they are drawn, and its published recursion.

nearest     each feature takes its nearest code                                    red, squares, dashed
transport   each feature takes its largest entry of the transport plan (Sinkhorn)  green, circles, solid
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from vqdm_cuda import nearest_code, sinkhorn

__all__ = ["LOOKS", "METHODS", "Look", "assign", "costs", "handle", "published_plans", "scatter"]

METHODS = ("nearest", "transport")


class Look(NamedTuple):
    """The colours are the paper's, the rest tells the methods apart without them."""

    color: str
    marker: str
    line: Literal["-", "--"]


# A dark red and a light bluish green: apart in lightness too.
LOOKS = {"nearest": Look("#b3202c", "s", "--"), "transport": Look("#17a67c", "o", "-")}


def scatter(
    ax: Axes,
    points: Tensor,  # [N, 2]
    **look: Any,
) -> None:
    """`Axes.scatter` of a tensor."""
    x, y = points.numpy().T
    ax.scatter(x, y, **look)


def handle(method: str, label: str, *, filled: bool = True) -> Line2D:
    """How a method looks, for a legend."""
    look = LOOKS[method]
    face = look.color if filled else "white"
    return Line2D([], [], color=look.color, marker=look.marker, linestyle=look.line, markerfacecolor=face, label=label)


def assign(
    method: str,
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    *,
    eps: float = 0.1,
    num_iters: int = 5,
) -> Tensor:  # indices [N]
    """The code of each feature. The defaults of `eps` and `num_iters` are OptVQ's."""
    return nearest_code(z, e)[1] if method == "nearest" else sinkhorn(z, e, eps=eps, num_iters=num_iters)[2]


def costs(
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    *,
    normalized: bool = True,
) -> Tensor:  # [N, K]
    """||z_i - e_k||, and, normalised, what OptVQ makes of it: less its mean, over its std + 1e-6, less its smallest."""
    c = torch.cdist(z, e, compute_mode="donot_use_mm_for_euclid_dist")
    if normalized:
        c = (c - c.mean()) / (c.std() + 1e-6)
        c = c - c.min()
    return c


def published_plans(
    scores: Tensor,  # [N, K] S = -cost / eps, float32 or float64: the precision of everything that follows
    num_iters: int,
    *,
    floor: float = 1e-8,
) -> Iterator[Tensor]:  # [N, K] each, after 0 ... num_iters iterations; entries sum to 1
    """The plans of OptVQ's published recursion (zbr17/OptVQ), which is linear and holds the whole matrix.

    Where all codes of a feature underflow to 0, its row of the plan is 0, and argmax says code 0.
    """
    N, K = scores.shape
    plan = scores.exp()
    plan = plan / (plan.sum() + floor)
    yield plan
    for _ in range(num_iters):
        plan = plan / (plan.sum(0, keepdim=True) + floor) / K
        plan = plan / (plan.sum(1, keepdim=True) + floor) / N
        yield plan
