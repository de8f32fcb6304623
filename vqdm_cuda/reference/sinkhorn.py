"""Sinkhorn assignment, by definition: the whole [N, K] matrix in float64.

    c_ik    = ||z_i - e_k||                                     or its square
    cost_ik = c_ik / (std c + 1e-6), c_ik / sqrt(d), or c_ik    normalize "std" (of all pairs, unbiased), "dim", None
    S_ik    = -cost_ik / eps                                    "std" with a floor: shifted so that its maximum is 0
    u       = -LAE(LSE_ik S)    v = 0                           LSE: log-sum-exp. LAE(x): log(e^x + floor)
    repeat  u_k <- u_k - LAE(u_k + LSE_i(S_ik + v_i)) - log K   codes first
            v_i <- v_i - LAE(v_i + LSE_k(S_ik + u_k)) - log N
    f = eps (v + log N)    g = eps (u + log K)                  plan = exp(S + u + v) = exp((f + g)/eps + S) / (N K)
    indices_i = argmax_k S_ik + u_k                             ties go to the smallest k
                or, with a seed, + G_ik: a draw from row i of the plan (Gumbel maximum)

With a floor of 1e-8 this is OptVQ's published recursion (zbr17/OptVQ, arXiv 2412.15195) in the log domain.

Shapes: N features, K codes, d dimensions.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def sinkhorn(
    z: Tensor,  # [..., N, d]
    e: Tensor,  # [..., K, d]
    *,
    eps: float = 0.1,
    num_iters: int = 5,
    cost: str = "euclidean",
    normalize: str | None = "std",
    floor: float = 0.0,
    seed: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # f [..., N], g [..., K], indices int64 [..., N]
    """Potentials and assignment. Leading dimensions broadcast. Of one process."""
    out_dtype = torch.float64 if torch.float64 in (z.dtype, e.dtype) else torch.float32
    heads = torch.broadcast_shapes(z.shape[:-2], e.shape[:-2])
    (N, d), K = z.shape[-2:], e.shape[-2]
    z64 = z.double().expand(*heads, N, d).reshape(heads.numel(), N, d)
    e64 = e.double().expand(*heads, K, d).reshape(heads.numel(), K, d)
    f, g, indices = [], [], []
    for h, (rows, codes) in enumerate(zip(z64, e64, strict=True)):
        S = scores(rows, codes, eps, cost, normalize, floor)
        u, v = potentials(S, num_iters, floor)
        f.append(eps * (v + math.log(max(N, 1))))
        g.append(eps * (u + math.log(K)) if N else torch.zeros_like(u))
        noise = 0.0 if seed is None else gumbel(seed, h, N, K)
        indices.append((S + u + noise).argmax(1))
    return (
        torch.stack(f).to(out_dtype).reshape(*heads, N),
        torch.stack(g).to(out_dtype).reshape(*heads, K),
        torch.stack(indices).reshape(*heads, N),
    )


def scores(
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    eps: float,
    cost: str,
    normalize: str | None,
    floor: float,
) -> Tensor:  # S [N, K] float64
    """S as above."""
    D = torch.zeros(z.shape[0], e.shape[0], dtype=torch.float64)
    for j in range(z.shape[1]):
        D += (z[:, None, j].double() - e[None, :, j].double()) ** 2
    c = D.sqrt() if cost == "euclidean" else D
    if normalize == "dim":
        return -c / (math.sqrt(z.shape[1]) * eps)
    if normalize is None:
        return -c / eps
    std = c.std() if c.numel() > 1 else c.new_zeros(())
    S = -c / (eps * (std + 1e-6))
    return S - S.max() if floor > 0 and S.numel() else S


def potentials(
    S: Tensor,  # [N, K] float64
    num_iters: int,
    floor: float,
) -> tuple[Tensor, Tensor]:  # u [K], v [N]
    """The recursion above."""
    N, K = S.shape

    def floored(x: Tensor) -> Tensor:
        return torch.logaddexp(x, x.new_tensor(floor).log()) if floor > 0 else x

    v = S.new_zeros(N)
    u = -floored(S.reshape(-1).logsumexp(0)).expand(K)
    for _ in range(num_iters):
        u = u - floored(u + (S + v[:, None]).logsumexp(0)) - math.log(K)
        v = v - floored(v + (S + u).logsumexp(1)) - math.log(max(N, 1))
    return u, v


def gumbel(
    seed: int,
    head: int,
    N: int,
    K: int,
    first_row: int = 0,
) -> Tensor:  # [N, K] float64
    """Standard Gumbel numbers -log(-log U), U = (word + 1/2) / 2^32.

    Of Philox4x32-10 (Salmon et al., SC 2011), key: the seed, counter: (row low, row high, k / 4, head), word k % 4.
    """
    low, half, key = np.uint64(2**32 - 1), np.uint64(32), np.uint64(seed % 2**64)
    c: Any = np.zeros((4, N, (K + 3) // 4), dtype=np.uint64)
    rows = np.arange(first_row, first_row + N, dtype=np.uint64)[:, None]
    c[0], c[1], c[2], c[3] = rows & low, rows >> half, np.arange(c.shape[2]), head
    key0, key1 = key & low, key >> half
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = np.stack([(b >> half) ^ c[1] ^ key0, b & low, (a >> half) ^ c[3] ^ key1, a & low])
        key0, key1 = (key0 + np.uint64(0x9E3779B9)) & low, (key1 + np.uint64(0xBB67AE85)) & low
    words = torch.from_numpy(c.transpose(1, 2, 0).reshape(N, -1)[:, :K].astype(np.float64))
    return -torch.log(-torch.log((words + 0.5) * 2.0**-32))
