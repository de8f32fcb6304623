"""Nearest code, by definition.

    total[i, k] = ((z_i1 - e_k1)^2 + (z_i2 - e_k2)^2) + ... + bias_k      float64, left to right, no fused multiply-add
    indices[i]  = lowest k that minimises total[i, k]
    dist2[i]    = min_k total[i, k], rounded once to the output type

A code that holds NaN or Inf, or whose bias is NaN or +Inf, is never chosen while an admissible one exists.
Where none exists, and for a row that holds NaN or Inf, the index is 0 and dist2 is NaN. A total of Inf - Inf, as a bias
of -Inf can make it, counts as +Inf.

Shapes: N features, K codes, d dimensions.
"""

import torch
from torch import Tensor

_PAIRS_PER_BLOCK = 1 << 21  # rows are taken in blocks, so that memory stays bounded


def nearest_code(
    z: Tensor,  # [..., N, d]
    e: Tensor,  # [..., K, d]
    bias: Tensor | None = None,  # [..., K]
) -> tuple[Tensor, Tensor]:  # dist2 [..., N], indices int64 [..., N]
    """Squared distance to, and index of, the closest code of each feature. Leading dimensions broadcast."""
    given = [z, e] if bias is None else [z, e, bias]
    out_dtype = torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32
    bias = z.new_zeros(e.shape[:-1]) if bias is None else bias
    heads = torch.broadcast_shapes(z.shape[:-2], e.shape[:-2], bias.shape[:-1])
    (N, d), K = z.shape[-2:], e.shape[-2]
    z64 = z.double().expand(*heads, N, d).reshape(heads.numel(), N, d)
    e64 = e.double().expand(*heads, K, d).reshape(heads.numel(), K, d)
    bias64 = bias.double().expand(*heads, K).reshape(heads.numel(), K)

    results = [_one_head(*head) for head in zip(z64, e64, bias64, strict=True)]
    dist2 = torch.stack([r[0] for r in results]) if results else z64.new_empty(0, N)
    indices = torch.stack([r[1] for r in results]) if results else z64.new_empty(0, N, dtype=torch.int64)
    return dist2.to(out_dtype).reshape(*heads, N), indices.reshape(*heads, N)


def _one_head(z: Tensor, e: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:  # [N, d], [K, d], [K] -> [N], [N]
    admissible = e.isfinite().all(-1) & (bias < torch.inf)  # [K]; a NaN bias fails the comparison
    defined = z.isfinite().all(-1) & admissible.any()  # [N]
    with torch.no_grad():
        block = max(1, _PAIRS_PER_BLOCK // e.shape[0])
        indices = torch.cat([_lowest_minimum(rows, e, bias, admissible) for rows in z.split(block)])
        indices = torch.where(defined, indices, 0)
    # The same sum for the chosen codes alone has the same bits, and autograd sees only N x d numbers.
    dist2 = _total(z.T, e[indices].T, bias[indices])
    return torch.where(defined, dist2, torch.nan), indices


def _lowest_minimum(z: Tensor, e: Tensor, bias: Tensor, admissible: Tensor) -> Tensor:  # [n, d], ... -> [n]
    total = _total(z.T[:, :, None], e.T[:, None, :], bias)  # [n, K]
    total = torch.where(admissible, total, torch.inf)
    first_admissible = admissible.long().argmax()  # finite values may be so far apart that every total is inf
    lowest, indices = total.min(-1).values, total.argmin(-1)  # argmin gives the first of equal minima
    return torch.where(lowest == torch.inf, first_admissible, indices)


def _total(z: Tensor, e: Tensor, bias: Tensor) -> Tensor:  # coordinates first: [d, ...], [d, ...]
    total = (z[0] - e[0]) * (z[0] - e[0])
    for j in range(1, len(z)):
        difference = z[j] - e[j]
        total = total + difference * difference
    total = total + bias
    return torch.where(total.isnan(), torch.inf, total)
