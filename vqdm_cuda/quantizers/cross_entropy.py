"""Cross entropy of choosing a code by its distance: OptVQ's loss form "ce" (arXiv 2412.15195), matrix-free.

    p_ik  = exp(-||z_i - e_k||) / sum_j exp(-||z_i - e_j||)                 Euclidean distances, not squared
    error = mean over i of -log p_{i, indices_i} = ||z_i - e_{indices_i}|| + log sum_k exp(-||z_i - e_k||)

It comes twice, as the two sides of a quantizer's loss: `commitment` has a gradient to z alone, `codebook` to e alone.
With the unit vectors u_ik = (z_i - e_k) / ||z_i - e_k||, and 0 where the two coincide, in closed form:

    dz_i = d_commitment / N (u_{i, indices_i} - sum_k p_ik u_ik)
    de_k = d_codebook / N (sum_i p_ik u_ik - sum_{i : indices_i = k} u_ik)

The [N, K] probabilities are never stored: the backward pass computes them anew, a block of rows after the other.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["distance_cross_entropy"]

# Numbers of one block [rows, K] of the backward pass: 4 MiB.
_BLOCK = 1 << 19


def distance_cross_entropy(
    z: Tensor,  # [N, d] float32 or float64
    e: Tensor,  # [K, d] float32 or float64
    indices: Tensor,  # [N] int64
) -> tuple[Tensor, Tensor]:
    """(commitment, codebook): the error twice, scalars of z's type, differentiable once. 0 without rows."""
    return _DistanceCrossEntropy.apply(z, e, indices)


class _DistanceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, e: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        no_weights = torch.zeros(1, e.shape[0], dtype=torch.float64, device=e.device)
        one = torch.ones(1, dtype=torch.float64, device=e.device)
        log_sum = torch.ops.vqdm.pair_logsumexp(z[None], e[None], no_weights, one, False)[0]
        chosen = torch.linalg.vector_norm(z - e.index_select(0, indices), dim=1, dtype=torch.float64)
        error = ((chosen + log_sum).sum() / max(z.shape[0], 1)).to(z.dtype)
        return error, error.clone()

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_commitment: Tensor, grad_codebook: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, e, indices = ctx.saved_tensors
        to_z, to_e = ctx.needs_input_grad[:2]
        scale = 1 / max(z.shape[0], 1)
        pull_z, pull_e = _pulls(z, e, indices)
        grad_z = (scale * grad_commitment) * pull_z if to_z else None
        grad_e = ((scale * grad_codebook) * pull_e).to(e.dtype) if to_e else None
        return grad_z, grad_e, None


def _pulls(
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
    indices: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:
    """(u_chosen - sum_k p u [N, d], sum_i p u - sum_chosen u [K, d]) in z's type.

    In float64: w (z - e) is taken as w z - w e, whose digits cancel where a feature is close to a code, and w, which is
    p over their distance, is large.
    """
    (N, _), K, dtype = z.shape, e.shape[0], z.dtype
    e = e.double()
    centre = e.mean(0)
    e = e - centre
    pull_z, pull_e = z.new_empty(z.shape), torch.zeros_like(e)
    rows = max(1, _BLOCK // K)
    for start in range(0, N, rows):
        block = z[start : start + rows].double() - centre
        distance = torch.cdist(block, e, compute_mode="donot_use_mm_for_euclid_dist")
        # u_chosen - sum_k p u = sum_k w (z - e) with w = (1 for the chosen one, less p) / distance
        weights = -torch.softmax(-distance, 1)
        weights.scatter_add_(1, indices[start : start + rows, None], torch.ones_like(block[:, :1]))
        weights = _divided(weights, distance)
        pull_z[start : start + rows] = (weights.sum(1, keepdim=True) * block - weights @ e).to(dtype)
        pull_e += weights.sum(0)[:, None] * e - weights.T @ block
    return pull_z, pull_e.to(dtype)


def _divided(x: Tensor, distance: Tensor) -> Tensor:
    """x / distance, and 0 at distance 0, where the gradient of a norm may be any vector of length up to 1."""
    return torch.where(distance > 0, x / distance, 0.0)
