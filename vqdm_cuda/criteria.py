"""The paper's three criteria of a quantizer (Wasserstein VQ, section 2.2).

    E = (1/N) sum_i ||z_i - e_{r(i)}||^2        quantization error, of the nearest codes
    U = #{k : count_k > 0} / K                  utilization (the paper prints 1/N; its code divides by K)
    C = exp(-sum_k p_k ln p_k), p_k = count_k / N      perplexity: the effective number of codes, from 1 to K

The prototype study of the paper (Fig. 3) plots the root of E; the functions here give E itself.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vqdm_cuda.distributed import all_reduce_sum
from vqdm_cuda.ops._checks import check_floating, has_values, result_dtype
from vqdm_cuda.ops.code_sums import check_indices
from vqdm_cuda.ops.nearest_code import nearest_code

__all__ = ["Usage", "criterion_triple", "perplexity", "quantization_error", "utilization"]


def quantization_error(
    z: Tensor,  # [..., N, d]
    e: Tensor,  # [..., K, d]
) -> Tensor:  # scalar
    """E, Criterion 1: the mean squared distance of the features to their nearest codes, per feature, not per number.

    float32 (float64 where an input is float64), differentiable in both. Errors are those of `nearest_code`. NaN for no
    features.
    """
    dist2, _ = nearest_code(z, e)
    return dist2.double().mean().to(dist2.dtype)


def utilization(
    counts: Tensor,  # [..., K] of any integer type
) -> Tensor:  # float64 [...]
    """U, Criterion 2: the fraction of the codes that are used at least once.

    Raises:
        ValueError: counts is not [..., K] with K >= 1.
        TypeError: counts is not a tensor of integers.
    """
    _check_counts("utilization", counts)
    return (counts > 0).double().mean(-1)


def perplexity(
    counts: Tensor,  # [..., K] of any integer type
) -> Tensor:  # float64 [...]
    """C, Criterion 3: the effective number of codes in use, at most K; 0 where nothing was counted.

    Raises:
        ValueError: counts is not [..., K] with K >= 1.
        TypeError: counts is not a tensor of integers.
    """
    _check_counts("perplexity", counts)
    total = counts.sum(-1, keepdim=True)
    p = counts.double() / total.clamp_min(1)
    return torch.special.entr(p).sum(-1).exp() * (total[..., 0] > 0)


def criterion_triple(
    z: Tensor,  # [N, d]
    e: Tensor,  # [K, d]
) -> tuple[Tensor, Tensor, Tensor]:  # scalars
    """(E, U, C) of features z under the nearest codes of e, from one search. Errors are those of `nearest_code`."""
    check_floating("criterion_triple", z=z, e=e)
    if z.dim() != 2 or e.dim() != 2:
        raise ValueError(f"criterion_triple: expected z [N, d] and e [K, d], got {list(z.shape)} and {list(e.shape)}")
    dist2, indices = nearest_code(z, e)
    counts = _count_codes(indices, e.shape[0])
    return dist2.double().mean().to(result_dtype(z, e)), utilization(counts), perplexity(counts)


def _check_counts(function: str, counts: Tensor) -> None:
    if not isinstance(counts, Tensor):
        raise TypeError(f"{function}: expected counts to be a tensor, got {type(counts).__name__}")
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"{function}: expected counts of an integer dtype, got {counts.dtype}")
    if counts.dim() < 1 or counts.shape[-1] < 1:
        raise ValueError(f"{function}: expected counts [..., K] with K >= 1, got {list(counts.shape)}")


def _count_codes(indices: Tensor, num_codes: int) -> Tensor:  # [..., N] -> int64 [..., K]
    """How often each code occurs. Integers, so any order gives the same counts."""
    return indices.new_zeros(*indices.shape[:-1], num_codes).scatter_add(-1, indices, torch.ones_like(indices))


def _check_range(function: str, indices: Tensor, num_codes: int) -> None:
    """Raise unless, where that costs no synchronisation, all values lie in [0, num_codes)."""
    if has_values(indices) and indices.device.type == "cpu" and indices.numel():
        low, high = (int(v) for v in indices.aminmax())
        if low < 0 or high >= num_codes:
            raise ValueError(f"{function}: expected indices in [0, {num_codes}), got values from {low} to {high}")


class Usage:
    """How often each code of a codebook was used: exact int64 counts over a data set, and over processes.

    Example:
        >>> usage = Usage(4)
        >>> usage.update(torch.tensor([[0, 1], [1, 1]]))
        >>> usage.counts.tolist(), usage.utilization()
        ([1, 3, 0, 0], 0.5)
    """

    counts: Tensor  # int64 [K], on the device of the last indices

    def __init__(self, codebook_size: int) -> None:
        if not isinstance(codebook_size, int) or isinstance(codebook_size, bool):
            raise TypeError(f"Usage: expected codebook_size to be an int, got {type(codebook_size).__name__}")
        if codebook_size < 1:
            raise ValueError(f"Usage: expected codebook_size >= 1, got {codebook_size}")
        self.codebook_size = codebook_size
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self.counts = torch.zeros(self.codebook_size, dtype=torch.int64)

    def update(
        self,
        indices: Tensor | list[Tensor],  # int64 of any shape; a list for a multi-scale quantizer
    ) -> None:
        """Count these indices too. Errors are those of `code_sums`; nothing is counted when one is raised."""
        parts = indices if isinstance(indices, list | tuple) else [indices]
        for part in parts:
            check_indices("Usage.update", part)
            _check_range("Usage.update", part, self.codebook_size)
        counts = self.counts
        for part in parts:
            counts = counts.to(part.device) + _count_codes(part.flatten(), self.codebook_size)
        self.counts = counts

    def reduce(self, group: ProcessGroup | None = None) -> "Usage":
        """The usage over all ranks of the group (None: all processes), as a new object. Every rank must call.

        Where no process group was set up there is one process, and its own counts are the answer.
        """
        total = Usage(self.codebook_size)
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        total.counts = self.counts.clone() if alone else all_reduce_sum(self.counts, group)
        return total

    def utilization(self) -> float:
        """U: the fraction of the codes that were used at least once."""
        return float(utilization(self.counts))

    def perplexity(self) -> float:
        """C: the effective number of codes in use; 0 before any update."""
        return float(perplexity(self.counts))
