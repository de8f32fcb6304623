"""Code sums: for every code, the sum and the number of the features assigned to it.

    sums[k]   = sum_{i : indices_i = k} z_i
    counts[k] = #{i : indices_i = k}

The order of the additions is part of the definition. The features of a code, in the order of the rows, are cut into
chunks of 256. Each chunk is summed from left to right in float64, starting from 0; the sums of the chunks are added
from left to right in float64; the total is rounded once. So the bits depend on the code's own features alone: not on
the device, the number of threads, tiling or the run.

Shapes: N features, K = num_codes codes, d dimensions.
Specification: vqdm_cuda/reference/code_sums.py.  Kernels: csrc/{cpu,cuda}/code_sums.*
"""

from typing import Any

import torch
from torch import Tensor

from vqdm_cuda.ops._checks import check_floating, check_has_kernels, result_dtype

__all__ = ["code_sums"]


def code_sums(
    z: Tensor,  # [..., N, d] float64, float32, bfloat16 or float16, any strides
    indices: Tensor,  # [..., N] int64, 0 <= indices < num_codes
    num_codes: int,  # K
) -> tuple[Tensor, Tensor]:
    """Sum the features of each code, and count them. Deterministic; differentiable in z, twice too.

    Memory beyond the outputs is O(N + K): no one-hot matrix is made.

    Returns:
        sums [..., K, d], float32 (float64 for float64 z); a code without features has 0.
        counts [..., K], int64.

    Raises:
        ValueError: shapes that do not fit, different devices, num_codes < 1, an index outside [0, num_codes), CUDA
            tensors on a build without CUDA kernels. Index values raise it on the CPU alone: on a GPU the host would
            have to wait, so there, as in torch's own indexing, a wrong index ends in a device-side failure.
        TypeError: z not floating, indices not int64, num_codes not an int.

    Example:
        >>> sums, counts = code_sums(torch.ones(5, 2), torch.tensor([0, 2, 2, 0, 2]), 3)
        >>> sums[:, 0].tolist(), counts.tolist()
        ([2.0, 0.0, 3.0], [2, 0, 3])
    """
    _check(z, indices, num_codes)
    check_has_kernels("code_sums", z)
    return torch.ops.vqdm.code_sums(z, indices, num_codes)


def rows_at(
    table: Tensor,  # [..., K, d]
    indices: Tensor,  # [..., N]
) -> Tensor:  # [..., N, d]
    """The rows of the table at the indices: what the derivative of `code_sums` is made of, and its transpose."""
    if table.dim() == 2:
        return table.index_select(0, indices)
    return table.gather(-2, indices[..., None].expand(*indices.shape, table.shape[-1]))


def check_indices(function: str, indices: Tensor) -> None:
    """Raise TypeError unless indices is an int64 tensor."""
    if not isinstance(indices, Tensor):
        raise TypeError(f"{function}: expected indices to be a tensor, got {type(indices).__name__}")
    if indices.dtype != torch.int64:
        raise TypeError(f"{function}: expected indices of dtype int64, got {indices.dtype}")


def _check(z: Tensor, indices: Tensor, num_codes: int) -> None:
    check_floating("code_sums", z=z)
    if not isinstance(num_codes, int | torch.SymInt) or isinstance(num_codes, bool):
        raise TypeError(f"code_sums: expected num_codes to be an int, got {type(num_codes).__name__}")
    if num_codes < 1:
        raise ValueError(f"code_sums: expected num_codes >= 1, got {num_codes}")
    check_indices("code_sums", indices)
    if z.dim() < 2 or indices.shape != z.shape[:-1]:
        raise ValueError(
            f"code_sums: expected z [..., N, d] and indices [..., N], got {list(z.shape)} and {list(indices.shape)}"
        )
    if indices.device != z.device:
        raise ValueError(f"code_sums: expected indices on the device of z, {z.device}, got {indices.device}")


@torch.library.register_fake("vqdm::code_sums")
def _(z: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    _check(z, indices, num_codes)
    sums = z.new_empty(*z.shape[:-2], num_codes, z.shape[-1], dtype=result_dtype(z))
    return sums, indices.new_empty(*z.shape[:-2], num_codes)


def _setup_context(ctx, inputs, output) -> None:
    z, indices, _ = inputs
    _, counts = output
    ctx.mark_non_differentiable(counts)
    ctx.save_for_backward(indices)
    ctx.dtype = z.dtype


def _backward(ctx, grad_sums: Tensor, _grad_counts) -> tuple[Tensor, None, None]:
    (indices,) = ctx.saved_tensors
    return rows_at(grad_sums.to(ctx.dtype), indices), None, None


torch.library.register_autograd("vqdm::code_sums", _backward, setup_context=_setup_context)


def _vmap(info, in_dims, z: Tensor, indices: Tensor, num_codes: int) -> tuple[Any, Any]:
    """The mapped dimension becomes the first head."""
    z, indices = (
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip((z, indices), in_dims, strict=False)
    )
    return code_sums(z, indices, num_codes), (0, 0)


torch.library.register_vmap("vqdm::code_sums", _vmap)
