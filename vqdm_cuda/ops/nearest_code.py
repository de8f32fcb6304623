"""Nearest code: assign every feature to its closest code vector.

    D[i, k]    = sum_j (z_ij - e_kj)^2 + bias_k      in float64, j from left to right
    dist2[i]   = min_k D[i, k]                       rounded once to the output type
    indices[i] = argmin_k D[i, k]                    ties go to the smallest k

Shapes: N features, K codes, d dimensions; leading dimensions (heads) broadcast.
Specification: vqdm_cuda/reference/nearest_code.py.  Kernels: csrc/{cpu,cuda}/nearest_code.*
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqdm_cuda.ops._checks import check_floating, check_has_kernels, result_dtype, shapes
from vqdm_cuda.ops.code_sums import code_sums, rows_at

__all__ = ["nearest_code"]


def nearest_code(
    z: Tensor,  # [..., N, d] float64, float32, bfloat16 or float16, any strides
    e: Tensor,  # [..., K, d] any of these types
    bias: Tensor | None = None,  # [..., K] added to the squared distance (a power diagram)
) -> tuple[Tensor, Tensor]:
    """Return the squared distance to, and the index of, the closest code of each feature.

    The [N, K] distance matrix is never stored. The answer is that of float64 arithmetic on the given values, bit for
    bit on every backend, for any offset, scale, tiling and number of threads. Codes that hold NaN or Inf, or whose bias
    is NaN or +Inf, are never chosen while another exists; where none exists, and for a feature that holds NaN or Inf,
    the index is 0 and the distance NaN.

    Returns:
        dist2 [..., N], float32 (float64 where an input is float64), bias included; differentiable in z, e and bias.
        indices [..., N], int64.

    Raises:
        ValueError: shapes that do not fit, an empty codebook, tensors on different devices, CUDA tensors on a build
            without CUDA kernels.
        TypeError: an argument that is not a tensor of a floating type.

    Example:
        >>> dist2, indices = nearest_code(torch.randn(1024, 64), torch.randn(512, 64))
        >>> dist2.shape, indices.shape
        (torch.Size([1024]), torch.Size([1024]))
    """
    _check(z, e, bias)
    check_has_kernels("nearest_code", z)
    return torch.ops.vqdm.nearest_code(z, e, bias)


def _check(z: Tensor, e: Tensor, bias: Tensor | None) -> None:
    check_floating("nearest_code", z=z, e=e, **({} if bias is None else {"bias": bias}))
    if z.dim() < 2 or e.dim() < 2 or z.shape[-1] != e.shape[-1]:
        raise ValueError(
            "nearest_code: expected z [..., N, d] and e [..., K, d] with equal d, "
            f"got {list(z.shape)} and {list(e.shape)}"
        )
    if e.shape[-2] < 1 or e.shape[-1] < 1:
        raise ValueError(f"nearest_code: expected e [..., K, d] with K >= 1 and d >= 1, got {list(e.shape)}")
    if bias is not None and (bias.dim() < 1 or bias.shape[-1] != e.shape[-2]):
        raise ValueError(
            f"nearest_code: expected bias [..., K] with K = {e.shape[-2]} codes as in e, got {list(bias.shape)}"
        )
    try:
        _heads(z, e, bias)
    except RuntimeError:
        got = shapes(*(t for t in (z, e, bias) if t is not None))
        raise ValueError(f"nearest_code: expected leading dimensions that broadcast, got {got}") from None


def _heads(z: Tensor, e: Tensor, bias: Tensor | None) -> torch.Size:
    return torch.broadcast_shapes(z.shape[:-2], e.shape[:-2], () if bias is None else bias.shape[:-1])


@torch.library.register_fake("vqdm::nearest_code")
def _(z: Tensor, e: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    _check(z, e, bias)
    sizes = (*_heads(z, e, bias), z.shape[-2])
    dist2 = z.new_empty(sizes, dtype=result_dtype(*(t for t in (z, e, bias) if t is not None)))
    return dist2, z.new_empty(sizes, dtype=torch.int64)


def _setup_context(ctx, inputs, output) -> None:
    z, e, bias = inputs
    _, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(z, e, indices)
    ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)


def _backward(ctx, grad_dist2: Tensor, _grad_indices) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    z, e, indices = ctx.saved_tensors
    grad_z = grad_e = grad_bias = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        # d dist2_i / d z_i = 2 (z_i - e_k*), and the negative of that for e_k*.
        chosen = rows_at(e.to(grad_dist2.dtype).expand(*indices.shape[:-1], *e.shape[-2:]), indices)
        g = (2.0 * grad_dist2[..., None]) * (z.to(grad_dist2.dtype) - chosen)  # [..., N, d]
        if ctx.needs_input_grad[0]:
            grad_z = g.sum_to_size(z.shape).to(z.dtype)
        if ctx.needs_input_grad[1]:
            grad_e = -_sums_like(g, indices, e.shape).to(e.dtype)
    if ctx.needs_input_grad[2]:
        shape, dtype = ctx.bias_like
        grad_bias = _sums_like(grad_dist2[..., None], indices, (*shape, 1))[..., 0].to(dtype)
    return grad_z, grad_e, grad_bias


def _sums_like(g: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:  # [..., N, d], [..., N] -> shape
    """The sums of the codes of a codebook [..., K, d] of this shape, over the heads that share it."""
    if all(size == 1 for size in shape[:-2]):  # one codebook for all heads: one set of sums, not one for each
        return code_sums(g.reshape(-1, g.shape[-1]), indices.reshape(-1), shape[-2])[0].view(shape)
    return code_sums(g, indices, shape[-2])[0].sum_to_size(shape)


torch.library.register_autograd("vqdm::nearest_code", _backward, setup_context=_setup_context)


def _vmap(info, in_dims, z: Tensor, e: Tensor, bias: Tensor | None) -> tuple[Any, Any]:
    """The mapped dimension becomes the first head; an argument without it broadcasts."""
    given = list(zip((z, e, bias), in_dims, (2, 2, 1), strict=True))  # tensor, mapped dimension, dimensions of its own
    heads = max(t.dim() - own - (dim is not None) for t, dim, own in given if t is not None)

    def first(t: Tensor | None, dim: int | None, own: int) -> Tensor | None:
        if t is None or dim is None:
            return t
        missing = heads - (t.dim() - own - 1)
        return t.movedim(dim, 0)[(slice(None), *(None,) * missing)]

    return nearest_code(*(first(*argument) for argument in given)), (0, 0)  # type: ignore[arg-type]


torch.library.register_vmap("vqdm::nearest_code", _vmap)
