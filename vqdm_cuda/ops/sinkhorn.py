"""Sinkhorn assignment: features are matched to codes as a whole, so that every code gets its share (OptVQ).

    c_ik    = ||z_i - e_k||                                     or its square
    cost_ik = c_ik / (std c + 1e-6), c_ik / sqrt(d), or c_ik    normalize "std" (of all pairs, unbiased), "dim", None
    S_ik    = -cost_ik / eps                                    "std" with a floor or local statistics: maximum 0
    u       = -LAE(LSE_ik S)    v = 0                           LSE: log-sum-exp. LAE(x): log(e^x + floor)
    repeat  u_k <- u_k - LAE(u_k + LSE_i(S_ik + v_i)) - log K   codes first
            v_i <- v_i - LAE(v_i + LSE_k(S_ik + u_k)) - log N
    f = eps (v + log N)    g = eps (u + log K)                  plan = exp(S + u + v) = exp((f + g)/eps + S) / (N K)
    indices_i = argmax_k S_ik + u_k                             ties go to the smallest k

S is never stored: each half-step computes the costs anew, tile by tile. The steps are local ops; between them stand
vectors of K numbers, which is all that the ranks of a process group exchange.

Shapes: N features, K codes, d dimensions, H heads (the leading dimensions).
Specification: vqdm_cuda/reference/sinkhorn.py.  Kernels: csrc/{cpu,cuda}/pair_costs.*
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import all_gather
from vqdm_cuda.ops._checks import check_floating, check_has_kernels, result_dtype, shapes
from vqdm_cuda.ops._pair_scale import pair_scale
from vqdm_cuda.ops.nearest_code import nearest_code

__all__ = ["check_options", "sinkhorn"]

COSTS = ("euclidean", "sqeuclidean")
NORMALIZATIONS = ("std", "dim", None)
STATS = ("global", "local")


@torch.no_grad()
def sinkhorn(
    z: Tensor,  # [..., N, d] float64, float32, bfloat16 or float16, any strides
    e: Tensor,  # [..., K, d] any of these types
    *,
    eps: float = 0.1,
    num_iters: int = 5,
    cost: str = "euclidean",
    normalize: str | None = "std",
    floor: float = 0.0,
    stats: str = "global",
    seed: int | None = None,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Assign features to codes by entropic optimal transport (Cuturi 2013), as OptVQ does (arXiv 2412.15195).

    In O((N + K) d) memory (and d^2 for the statistics of the squared cost), and in the log domain: an outlier, which
    the published code gives code 0 where its row of exponentials underflows, has the code that its potentials say.
    Costs of float32 and shorter inputs are computed in float32, good for typical costs of up to 512 eps; beyond, a CPU
    turns to float64, while CUDA kernels lose digits in proportion. Potentials are float64 inside and rounded once. The
    assignment itself is decided in float64 for the given potentials, by the rule of `nearest_code`. The same bits on
    every run and for any number of threads.

    Args:
        eps: regularisation, in units of the normalised cost; OptVQ's factor of 10 is 0.1.
        num_iters: of the alternating updates. Rows of the plan are then exact, columns approximate.
        cost: "euclidean" (OptVQ's own) or "sqeuclidean".
        normalize: divide the cost by its "std" over all pairs, by sqrt(d) ("dim"), or not (None).
        floor: what the published code adds to every sum: 1e-8 with stats="local" is its recursion, index for index.
            It keeps codes that are far from all features from drawing any. 0 is exact Sinkhorn.
        stats: "global" or "local": whether the ranks of a group share one std, or have each its own, as published.
        seed: draw each index from its row of the plan, where None takes the largest entry. The draw depends on the
            seed, the head, the row and the code alone; rows are counted over the ranks of the group.
        group: the ranks whose features together have the marginals; their numbers may differ and be zero.

    Returns:
        f [..., N] and g [..., K], float32 (float64 where an input is), in units of the normalised cost. Without a floor
        and with global statistics, plan_ik = exp((f_i + g_k - cost_ik) / eps) / (N K).
        indices [..., N], int64.
        A NaN or Inf anywhere makes f and g of its head NaN and the indices 0. No features: g is 0.

    Raises:
        ValueError: shapes that do not fit, an empty codebook, an option outside its set, tensors on different devices,
            CUDA tensors on a build without CUDA kernels.
        TypeError: an argument of another type.

    Example:
        >>> f, g, indices = sinkhorn(torch.randn(1024, 64), torch.randn(512, 64))
        >>> f.shape, g.shape, indices.shape
        (torch.Size([1024]), torch.Size([512]), torch.Size([1024]))
    """
    _check(z, e, eps, num_iters, cost, normalize, floor, stats, seed)
    check_has_kernels("sinkhorn", z)
    (N, d), K = z.shape[-2:], e.shape[-2]
    heads = torch.broadcast_shapes(z.shape[:-2], e.shape[:-2])
    out_dtype, squared = result_dtype(z, e), cost == "sqeuclidean"
    H = heads.numel()
    z, e = z.expand(*heads, N, d).reshape(H, N, d), e.expand(*heads, K, d).reshape(H, K, d)

    of_stats = group if stats == "global" else None
    first_row, own_rows, rows = _rows_of_ranks(z, group)
    rows_of_stats = own_rows if of_stats is None else rows
    # S = shift - scale c
    scale = pair_scale(z, e, rows_of_stats, squared=squared, normalize=normalize, group=of_stats) / eps
    # A shift of all S by one number changes the floor's meaning alone; one for each rank also their shares.
    if normalize == "std" and (floor > 0 or (stats == "local" and group is not None)):
        shift = scale * _smallest_cost(z, e, squared, of_stats)
    else:
        shift = torch.zeros_like(scale)
    u, v, indices = _potentials(z, e, scale, shift, squared, num_iters, floor, rows.log(), group, assign=seed is None)
    if indices is None:
        bias = -u / scale[:, None]  # argmax shift - scale c + u  =  argmin c + bias
        if squared and seed is None:
            indices = nearest_code(z, e, bias)[1]
        else:
            noise = torch.zeros_like(scale) if seed is None else 1 / scale
            indices = torch.ops.vqdm.pair_argmin(z, e, bias, noise, squared, seed or 0, first_row)
    f = eps * (v + rows.log())
    g = torch.where(rows > 0, eps * (u + math.log(K)), 0.0)
    return f.to(out_dtype).view(*heads, N), g.to(out_dtype).view(*heads, K), indices.view(*heads, N)


def _potentials(
    z: Tensor,  # [H, N, d]
    e: Tensor,  # [H, K, d]
    scale: Tensor,  # [H] float64
    shift: Tensor,  # [H] float64
    squared: bool,
    num_iters: int,
    floor: float,
    log_rows: Tensor,  # [] float64, of the rows of all ranks
    group: ProcessGroup | None,
    assign: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # u [H, K], v [H, N] float64; and the indices, where they cost nothing more
    log_floor, log_codes = (math.log(floor) if floor > 0 else -math.inf), math.log(e.shape[1])

    def floored(x: Tensor) -> Tensor:
        return torch.logaddexp(x, torch.full_like(x, log_floor)) if floor > 0 else x

    def over_rows(v: Tensor) -> Tensor:  # LSE_i(S_ik + v_i) [H, K]
        return of_all_ranks(torch.ops.vqdm.pair_logsumexp(e, z, v + shift[:, None], scale, squared))

    def of_all_ranks(columns: Tensor) -> Tensor:
        return columns if group is None else all_gather(columns, group).logsumexp(0)

    def over_codes(u: Tensor) -> Tensor:  # LSE_k(S_ik + u_k) [H, N]
        return torch.ops.vqdm.pair_logsumexp(z, e, u, scale, squared) + shift[:, None]

    sweeps, indices = _in_one_sweep(z), None
    v = z.new_zeros(z.shape[:2], dtype=torch.float64)
    columns = over_rows(v)
    u = -floored(columns.logsumexp(1, keepdim=True)).expand_as(columns)
    for iteration in range(num_iters):
        u = u - floored(u + columns) - log_codes
        last = iteration + 1 == num_iters
        arguments = (z, e, u, v, scale, shift, log_rows, squared, log_floor)
        if sweeps and not last:
            v, local = torch.ops.vqdm.pair_sweep(*arguments)
            columns = of_all_ranks(local)
        elif sweeps and assign and not squared:
            v, indices = torch.ops.vqdm.pair_last_sweep(*arguments)
        else:
            v = v - floored(v + over_codes(u)) - log_rows
            if not last:
                columns = over_rows(v)
    return u, v, indices


def _in_one_sweep(z: Tensor) -> bool:
    """Whether a row step shares its exponentials with the next column step, or with the assignment: on a CPU, whose
    caches have room for those of some rows."""
    return not z.is_cuda


def _rows_of_ranks(z: Tensor, group: ProcessGroup | None) -> tuple[int, Tensor, Tensor]:  # [H, N, d]
    """How many rows the ranks before this one have, this one, and all together ([] float64)."""
    own = torch.full((), z.shape[1], dtype=torch.float64, device=z.device)
    if group is None:
        return 0, own, own
    counts = all_gather(own, group)
    return int(counts[: dist.get_rank(group)].sum()), own, counts.sum()


def _smallest_cost(z: Tensor, e: Tensor, squared: bool, group: ProcessGroup | None) -> Tensor:  # -> [H] float64
    """min_ik c_ik; 0 without rows."""
    infinite = z.new_full((z.shape[0], 1), math.inf, dtype=torch.float64)
    smallest = torch.cat([nearest_code(z, e.double())[0], infinite], 1).amin(1)  # not rounded to float32
    if group is not None:
        smallest = all_gather(smallest, group).amin(0)
    smallest = torch.where(smallest == math.inf, 0.0, smallest)
    return smallest if squared else smallest.sqrt()


def _check(z, e, eps, num_iters, cost, normalize, floor, stats, seed) -> None:
    check_floating("sinkhorn", z=z, e=e)
    if z.dim() < 2 or e.dim() < 2 or z.shape[-1] != e.shape[-1]:
        raise ValueError(
            f"sinkhorn: expected z [..., N, d] and e [..., K, d] with equal d, got {list(z.shape)} and {list(e.shape)}"
        )
    if e.shape[-2] < 1 or e.shape[-1] < 1:
        raise ValueError(f"sinkhorn: expected e [..., K, d] with K >= 1 and d >= 1, got {list(e.shape)}")
    try:
        torch.broadcast_shapes(z.shape[:-2], e.shape[:-2])
    except RuntimeError:
        got = shapes(z, e)
        raise ValueError(f"sinkhorn: expected leading dimensions that broadcast, got {got}") from None
    check_options("sinkhorn", eps, num_iters, cost, normalize, floor, stats)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise TypeError(f"sinkhorn: expected seed to be an int or None, got {type(seed).__name__}")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise ValueError(f"sinkhorn: expected a seed of 64 bits, got {seed}")


def check_options(
    name: str, eps: float, num_iters: int, cost: str, normalize: str | None, floor: float, stats: str
) -> None:
    """Raises for an option of another type or outside its set, in the name of who asks."""
    choices = (("cost", cost, COSTS), ("normalize", normalize, NORMALIZATIONS), ("stats", stats, STATS))
    for option, choice, allowed in choices:
        if choice not in allowed:
            raise ValueError(f"{name}: expected {option} to be one of {allowed}, got {choice!r}")
    for option, value in (("eps", eps), ("floor", floor)):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name}: expected {option} to be a number, got {type(value).__name__}")
    if not (1e-300 < eps < math.inf and 0 <= floor < math.inf):  # (so that 1 / eps is finite)
        raise ValueError(f"{name}: expected eps > 0 and floor >= 0, both finite, got {eps} and {floor}")
    if not isinstance(num_iters, int) or isinstance(num_iters, bool):
        raise TypeError(f"{name}: expected num_iters to be an int, got {type(num_iters).__name__}")
    if not 0 <= num_iters < 2**31:
        raise ValueError(f"{name}: expected num_iters from 0 to 2^31, got {num_iters}")


# The local steps -----------------------------------------------------------------------------------------------------


@torch.library.register_fake("vqdm::pair_logsumexp")
def _(x: Tensor, y: Tensor, weights: Tensor, scale: Tensor, squared: bool) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float64)


@torch.library.register_fake("vqdm::pair_sweep")
def _(x: Tensor, y: Tensor, u: Tensor, v: Tensor, *_options) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), u.new_empty(u.shape)


@torch.library.register_fake("vqdm::pair_last_sweep")
def _(x: Tensor, y: Tensor, u: Tensor, v: Tensor, *_options) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape, dtype=torch.int64)


@torch.library.register_fake("vqdm::pair_argmin")
def _(z: Tensor, e: Tensor, bias: Tensor, noise: Tensor, squared: bool, seed: int, first_row: int) -> Tensor:
    return z.new_empty(z.shape[:2], dtype=torch.int64)
