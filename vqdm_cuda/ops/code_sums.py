"""Code sums: for every code, the sum and the number of the features assigned to it.

    sums[k]   = sum_{i : indices_i = k} z_i     in float64, in the order of the rows, rounded once
    counts[k] = #{i : indices_i = k}

That order is the definition, so the bits do not depend on the number of threads, on tiling or on the run.
Shapes: N features, K = num_codes codes, d dimensions.
Specification: vqdm_cuda/reference/code_sums.py.
"""

import torch
from torch import Tensor

from vqdm_cuda.ops._checks import check_floating, has_values, result_dtype

__all__ = ["code_sums"]


def code_sums(
    z: Tensor,  # [..., N, d] float64, float32, bfloat16 or float16
    indices: Tensor,  # [..., N] int64, 0 <= indices < num_codes
    num_codes: int,  # K
) -> tuple[Tensor, Tensor]:
    """Sum the features of each code, and count them. Deterministic; differentiable in z, twice too.

    Returns:
        sums [..., K, d], float32 (float64 for float64 z); a code without features has 0.
        counts [..., K], int64.

    Raises:
        ValueError: shapes that do not fit, different devices, num_codes < 1, an index outside [0, num_codes).
            Index values on the CPU are checked here; on a GPU that would make the host wait, so there, as in torch's
            own indexing, a wrong index ends in a device-side assertion. Compiled code raises torch's own error.
        TypeError: z not floating, indices not int64, num_codes not an int.

    Example:
        >>> sums, counts = code_sums(torch.ones(5, 2), torch.tensor([0, 2, 2, 0, 2]), 3)
        >>> sums[:, 0].tolist(), counts.tolist()
        ([2.0, 0.0, 3.0], [2, 0, 3])
    """
    _check(z, indices, num_codes)
    add_rows = _add_rows_sorted if z.is_cuda else _add_rows
    return add_rows(z, indices, num_codes).to(result_dtype(z)), count_codes(indices, num_codes)


def _add_rows(z: Tensor, indices: Tensor, num_codes: int) -> Tensor:  # -> float64 [..., K, d]
    sums = z.new_zeros(*z.shape[:-2], num_codes, z.shape[-1], dtype=torch.float64)
    return sums.scatter_add(-2, indices[..., None].expand(z.shape), z.double())


def _add_rows_sorted(z: Tensor, indices: Tensor, num_codes: int) -> Tensor:  # -> float64 [..., K, d]
    """For GPUs, where scatter_add uses atomics: an accumulating index_put sorts, and so has one order."""
    *heads, N, d = z.shape
    num_heads = z.shape[:-2].numel()
    sums = z.new_zeros(num_heads, num_codes, d, dtype=torch.float64)
    codes = indices.reshape(num_heads, N)
    codes = torch.where(codes < 0, num_codes, codes)  # index_put would take -1 for the last code
    head = torch.arange(num_heads, device=z.device)[:, None].expand(num_heads, N)
    values = z.double().reshape(num_heads, N, d)
    return sums.index_put((head, codes), values, accumulate=True).reshape(*heads, num_codes, d)


def count_codes(indices: Tensor, num_codes: int) -> Tensor:  # [..., N] -> int64 [..., K]
    """How often each code occurs. Integers, so any order gives the same counts."""
    return indices.new_zeros(*indices.shape[:-1], num_codes).scatter_add(-1, indices, torch.ones_like(indices))


def check_indices(function: str, indices: Tensor, num_codes: int) -> None:
    """Raise unless indices is int64 and, where that costs no synchronisation, holds values in [0, num_codes)."""
    if not isinstance(num_codes, int | torch.SymInt) or isinstance(num_codes, bool):
        raise TypeError(f"{function}: expected num_codes to be an int, got {type(num_codes).__name__}")
    if num_codes < 1:
        raise ValueError(f"{function}: expected num_codes >= 1, got {num_codes}")
    if not isinstance(indices, Tensor):
        raise TypeError(f"{function}: expected indices to be a tensor, got {type(indices).__name__}")
    if indices.dtype != torch.int64:
        raise TypeError(f"{function}: expected indices of dtype int64, got {indices.dtype}")
    if has_values(indices) and indices.device.type == "cpu" and indices.numel():
        low, high = (int(v) for v in indices.aminmax())
        if low < 0 or high >= num_codes:
            raise ValueError(f"{function}: expected indices in [0, {num_codes}), got values from {low} to {high}")


def _check(z: Tensor, indices: Tensor, num_codes: int) -> None:
    check_floating("code_sums", z=z)
    check_indices("code_sums", indices, num_codes)
    if z.dim() < 2 or indices.shape != z.shape[:-1]:
        raise ValueError(
            f"code_sums: expected z [..., N, d] and indices [..., N], got {list(z.shape)} and {list(indices.shape)}"
        )
    if indices.device != z.device:
        raise ValueError(f"code_sums: expected indices on the device of z, {z.device}, got {indices.device}")
